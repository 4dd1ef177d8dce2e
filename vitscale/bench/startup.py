"""Where the time goes until the first step: Python, imports, and a run of one step, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitscale.bench.figures import Figure, spread

_IMPORTS = ("torch", "vitscale.recipe", "vitscale.data", "vitscale.models", "vitscale.train.run")


def measure_startup(repeats: int, shown: int = 8) -> tuple[list[Figure], dict[str, Any]]:
    """The quickstart's model and data; every run has an empty folder of its own."""
    figures = [spread("Python alone", _times(["-c", "pass"], repeats), "s"),
               spread("vitscale --help", _times(["-m", "vitscale", "--help"], repeats), "s")]
    figures += [spread(f"import {name}", _times(["-c", f"import {name}"], repeats), "s") for name in _IMPORTS]
    whole, steps = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            began = time.time()
            first, ended = _first_step(Path(name))
            whole.append(first - began)
            steps.append(ended - began)
    figures += [spread("`vitscale train quickstart` to the end of its first step", whole, "s", "digits packed and indexed on the way"),
                spread("to its end after three steps", steps, "s", "with an evaluation and a checkpoint")]
    slowest = _slowest_imports("vitscale.train.run")[:shown]
    figures += [Figure(f"import of {name} itself", seconds, "s", note="without what it imports") for name, seconds in slowest]
    return figures, {"python": sys.version.split()[0], "load": round(os.getloadavg()[0], 1)}


def _times(arguments: list[str], repeats: int) -> list[float]:
    found = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        if number:                      # the first one reads from the disk
            found.append(time.perf_counter() - began)
    return found


def _first_step(folder: Path) -> tuple[float, float]:
    """-> when the first step of a run ended, and when the run did."""
    subprocess.run(
        [sys.executable, "-m", "vitscale", "train", "quickstart", "duration=3 steps", "name=startup", "observe.exporter=false",
         "observe.log_every=1", "optim.warmup=1 steps"], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = time.time()
    lines = (folder / "runs" / "startup" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return next(row["time"] for row in map(json.loads, lines) if "loss" in row), ended


def _slowest_imports(module: str) -> list[tuple[str, float]]:
    """Modules by the seconds that their own code takes, by Python's -X importtime."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", f"import {module}"], check=True, capture_output=True, text=True)
    own = []
    for line in done.stderr.splitlines():
        microseconds, _, rest = line.removeprefix("import time:").partition("|")
        if microseconds.strip().isdigit():
            own.append((rest.rpartition("|")[2].strip(), int(microseconds) / 1e6))
    return sorted(own, key=lambda pair: -pair[1])
