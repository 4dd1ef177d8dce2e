"""Interleaved rounds of contenders, each a process of its own; ratios with their spread; rows.  Standard library only."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))       # a checkout that is not installed is measured too
Task = Callable[..., Mapping[str, Any]]


def serve(tasks: Mapping[str, Task]) -> None:
    """A contender's side: a task on each line of stdin, what it took on each line of stdout.  Whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        cpu, wall = _cpu_s(), time.perf_counter()
        told = dict(tasks[asked["task"]](**asked["given"]))
        took = {"cpu_s": _cpu_s() - cpu, "wall_s": time.perf_counter() - wall}
        answers.write(json.dumps({**took, **told}) + "\n")
        answers.flush()


def _cpu_s() -> float:
    """CPU seconds, user and system, of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Contender:
    """A program that serves tasks, started once.  One thread for each library's own pool, so that a core is a core."""

    def __init__(self, python: str, program: str) -> None:
        path = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
        self._process = subprocess.Popen(
            [python, str(HERE / program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, task: str, **given: Any) -> dict[str, Any]:
        into, out = self._process.stdin, self._process.stdout
        assert into
        assert out
        into.write(json.dumps({"task": task, "given": given}) + "\n")
        into.flush()
        line = out.readline()
        if not line:
            raise RuntimeError(f"{task} failed; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def interleave(rounds: int, runs: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Every contender once to warm up, then once in each round, in turning order: what disturbs the machine meets all alike."""
    for run in runs.values():
        run()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        for name in names[number % len(names):] + names[:number % len(names)]:
            found[name].append(runs[name]())
    return found


def rates(found: Sequence[Mapping[str, Any]], clock: str) -> list[float]:
    """Samples per second of each round.  clock: cpu_s or wall_s."""
    return [one["samples"] / one[clock] for one in found]


def figure(
    name: str, values: Sequence[float], unit: str = "", at_least: float | None = None, at_most: float | None = None,
) -> dict[str, Any]:
    """The median of the rounds, their least and most, and whether a goal is met."""
    value = statistics.median(values)
    shown: dict[str, Any] = {"name": name, "value": value, "low": min(values), "high": max(values), "unit": unit}
    if at_least is not None:
        shown |= {"goal": f">= {at_least:,g}", "met": value >= at_least}
    if at_most is not None:
        shown |= {"goal": f"<= {at_most:,g}", "met": value <= at_most}
    return shown


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, so that a slow moment of the machine counts on both sides."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def hardware() -> str:
    """Processor, cores this process may use, memory.  No names of machines."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def write_row(folder: Path, name: str, title: str, figures: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """One row: what was measured, on what, with what, when, at which commit."""
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    row = {
        "name": name, "title": title, "figures": list(figures), "hardware": hardware(), "load_at_end": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": git("rev-parse", "--short", "HEAD") or "unknown", **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
