"""What a real run spends on a step around the model: waiting for the loader, handing over, judging, writing down.  Writes a row.

    python benchmarks/overhead.py      then      python benchmarks/report.py
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import pack_photos
from measure import HERE, figure, write_row

OURS = ("compute", "optimizer")         # the model's own phases


def shares(rows: list[dict[str, Any]], phases: tuple[str, ...] = OURS) -> list[float]:
    """Of each of a run's rows but the first, which holds what happens once: the share of its step outside the model's phases."""
    found = []
    for before, row in itertools.pairwise(rows):
        step_s = row["time"] - before["time"]
        found.append(max(1 - sum(row[f"seconds_{name}"] for name in phases) / step_s, 0.0))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="a size of ViT")
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1, help="runs")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    found: list[float] = []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(json.dumps({
            "name": "overhead", "model": {"size": given.model, "image": given.image, "patch": 16, "classes": 10},
            "data": {"train": pack_photos(folder), "lanes": given.batch, "workers": 1}, "optim": {"lr": 1e-4, "clip_norm": 1.0},
            "global_batch": given.batch, "micro_batch": given.batch, "duration": f"{given.steps} steps",
            "parallel": {"device": "cpu"}, "observe": {"log_every": 1}, "checkpoint": {"every": None},
        }), encoding="utf-8")
        for number in range(given.rounds):
            subprocess.run([sys.executable, "-m", "vitscale", "train", "recipe.yaml", f"name=run-{number}"], cwd=folder, check=True,
                           stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
            lines = (folder / "runs" / f"run-{number}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [row for row in map(json.loads, lines) if "loss" in row]
            found += shares(rows)
            waits += [row["seconds_data_wait"] / (row["time"] - before["time"]) for before, row in itertools.pairwise(rows)]
    write_row(
        given.rows, "step-overhead", f"A step of ViT-{given.model} in a real run, batch {given.batch}, CPU: what is not the model's", [
            figure("share of a step", found, "", at_most=0.02),
            figure("of it waiting for data", waits, ""),
        ], command=" ".join(["python benchmarks/overhead.py", *(arguments if arguments is not None else sys.argv[1:])]),
        rounds=given.rounds, versions={"python": sys.version.split()[0], "torch": version("torch")},
    )


if __name__ == "__main__":
    main()
