"""Measures what faults cost a run that nobody watches: a killed rank, a signal, a checkpoint, a hang, ten faults in a row.  Writes rows.

    python benchmarks/unattended.py      then      python benchmarks/report.py

Real runs of the real command on scikit-learn's digits; faults come from outside (signals, flipped bits), NaNs by tests/faults.py.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import HERE, figure, ratios, write_row

sys.path.append(str(HERE.parent / "tests"))
from faults import Fault, faults

from vitscale.checkpoint.store import checkpoints_in, step_of
from vitscale.data import open_index, pack_digits

PARTS = ("restart", "signal", "stall", "hang", "goodput")
LATE_S = 600.0      # what does not come by then does not come
TINY = ["model.width=32", "model.depth=3", "model.heads=2", "model.mlp=64", "global_batch=32", "data.lanes=16", "parallel.processes=2",
        "evaluate.every=null", "optim.warmup=10 steps", "checkpoint.keep=3", "observe.exporter=false"]


@dataclass(frozen=True)
class Bench:
    """What a measurement is made with."""

    given: argparse.Namespace
    facts: dict[str, Any]       # of every row
    folder: Path                # temporary, with data/digits in it

    def run(self, name: str, *overrides: str) -> "Run":
        return Run(self.folder, name, overrides)


class Run:
    """A run under a name of its own, started as often as need be."""

    def __init__(self, folder: Path, name: str, overrides: tuple[str, ...]) -> None:
        self.place, self.folder = folder, folder / "runs" / name
        self._command = [sys.executable, "-m", "vitscale", "train", "quickstart", *overrides, f"name={name}"]
        self.process: subprocess.Popen[bytes]

    def start(self, *options: str, **environment: str) -> None:
        self.place.joinpath("logs").mkdir(exist_ok=True)
        with open(self.place / "logs" / f"{self.folder.name}.txt", "ab") as log:
            self.process = subprocess.Popen([*self._command, *options], cwd=self.place, stdout=log, stderr=log, env={
                **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), **environment})

    def rows(self, attempt: int | None = None) -> list[dict[str, Any]]:
        """The steps recorded so far, of one attempt or of all."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [row for row in rows if "loss" in row and attempt in (None, row["attempt"])]

    @property
    def outcome(self) -> dict[str, Any]:
        return json.loads((self.folder / "outcome.json").read_text())

    def until(self, done: Callable[[], bool], dead: bool = False) -> None:
        """Wait for something that a living process (or, if `dead`, its end) brings about."""
        deadline = time.monotonic() + LATE_S
        while not done():
            if (not dead and self.process.poll() is not None) or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"{self.folder.name}: it ended or is late; what it said: {self.place}/logs")
            time.sleep(0.01)

    def until_step(self, step: int, attempt: int | None = None) -> None:
        self.until(lambda: any(row["step"] >= step for row in self.rows(attempt)))

    def ended(self, *codes: int) -> None:
        code = self.process.wait(LATE_S)
        if code not in codes:
            said = (self.place / "logs" / f"{self.folder.name}.txt").read_text(errors="replace")
            raise RuntimeError(f"{self.folder.name}: exit code {code} instead of {codes}; it said\n{said[-2000:]}")

    def ranks(self) -> list[int]:
        """Process ids of the ranks that live now, in no order."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]

    def stop(self) -> None:
        self.process.terminate()
        self.ended(0, 75)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Benchmark of runs that nobody watches; rows go to --rows.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints of the small runs")
    parser.add_argument("--stall-model", default="small", help="size of the model whose checkpoints are timed")
    parser.add_argument("--stall-steps", type=int, default=8, help="steps between its checkpoints")
    parser.add_argument("--goodput-steps", type=int, default=4400, help="steps of the run with ten faults")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    names = {"rows": "", "only": " ".join(given.only) if given.only != PARTS else ""}
    options = "".join(f" --{key.replace('_', '-')} {names.get(key, value)}" for key, value in vars(given).items() if names.get(key, value))
    facts = {"command": f"python benchmarks/unattended.py{options}",
             "versions": {"python": sys.version.split()[0], "torch": version("torch"), "numpy": version("numpy")}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack_digits(folder / "data" / "digits")
        for split in ("train", "val"):
            open_index((str(folder / "data" / "digits" / f"{split}-*.tar"),))
        bench = Bench(given, facts, folder)
        for part in given.only:
            {"restart": measure_restart, "signal": measure_signal, "stall": measure_stall, "hang": measure_hang,
             "goodput": measure_goodput}[part](bench)


def measure_restart(bench: Bench) -> None:
    """kill -9 of a rank, seeded, in a run under --keep-going, until the first step of the next attempt has ended."""
    every = bench.given.every
    draw, run = random.Random(0), bench.run("restart", *TINY, f"checkpoint.every={every} steps", "duration=1000000 steps")
    # sleeping for 0 s leaves a mark, by which is seen when a rank's imports are over
    environment = faults(bench.folder, Fault("sleep", before="vitscale.train.run:run"))
    environment["PYTHONPATH"] += os.pathsep + str(HERE.parent)
    whole, imports, lost = [], [], []
    run.start("--keep-going", **environment)
    run.until_step(every + 5)
    for attempt in range(1, bench.given.rounds + 1):
        run.until_step(run.rows(attempt)[0]["step"] + every + draw.randrange(every), attempt)
        marks = list((bench.folder / "faults").glob("sleep-*"))
        for mark in marks:
            mark.unlink()
        killed = time.time()
        os.kill(draw.choice(run.ranks()), signal.SIGKILL)
        run.until(lambda attempt=attempt: bool(run.rows(attempt + 1)))
        first, last = run.rows(attempt + 1)[0], run.rows(attempt)[-1]
        whole.append(first["time"] - killed)
        imports.append(max(mark.stat().st_mtime for mark in marks) - min(map(started, run.ranks())))
        lost.append(last["step"] - first["step"] + 1)
    run.stop()
    ours = [a - b for a, b in zip(whole, imports, strict=True)]
    write_row(bench.given.rows, "unattended-restart", "kill -9 of one of two ranks, to the next optimizer step, one node, CPU", [
        figure("in all", whole, "s", at_most=15), figure("without Python's imports", ours, "s", at_most=5),
        figure("imports, in two processes at once", imports, "s"),
        figure(f"steps lost, of checkpoints every {every} steps", lost, "", at_most=every),
    ], rounds=bench.given.rounds, **bench.facts)


def started(pid: int) -> float:
    """When a process was started, seconds since 1970, to a hundredth."""
    ticks = float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")


def measure_signal(bench: Bench) -> None:
    """TERM at some step; the next attempt begins with the step after the last one."""
    run, lost, took = bench.run("signal", *TINY, "duration=1000000 steps", "checkpoint.every=null"), [], []
    for attempt in range(1, bench.given.rounds + 2):
        run.start()
        run.until(lambda attempt=attempt: len(run.rows(attempt)) >= 5)
        if attempt > 1:
            lost.append(run.rows(attempt - 1)[-1]["step"] + 1 - run.rows(attempt)[0]["step"])
        asked = time.time()
        run.stop()
        took.append(run.outcome["time"] - asked)
    write_row(bench.given.rows, "unattended-signal", "TERM in the middle of an epoch, two ranks, no other checkpoint", [
        figure("steps lost", lost, "", at_most=0), figure("from the signal to the saved checkpoint", took[1:], "s"),
    ], rounds=bench.given.rounds, **bench.facts)


def measure_stall(bench: Bench) -> None:
    """How long training stands still for a checkpoint: written behind its back, or in the foreground; the same run, in turn."""
    checkpoints, every = 3, bench.given.stall_steps
    model = [f"model.size={bench.given.stall_model}", "model.width=null", "model.depth=null", "model.heads=null", "model.mlp=null",
             "model.image=32", "model.patch=8", "global_batch=16", "data.lanes=16", "evaluate.every=null", "optim.warmup=0 steps",
             f"checkpoint.every={every} steps", f"duration={checkpoints * every + every // 2} steps", "checkpoint.keep=1", "data.val=null",
             "observe.exporter=false", "resilience.hang_timeout=600"]
    stall: dict[bool, list[float]] = {True: [], False: []}
    step: dict[bool, list[float]] = {True: [], False: []}
    peer, size = [], 0
    for number in range(bench.given.rounds):
        for background in ((True, False) if number % 2 else (False, True)):
            run = bench.run(f"stall-{number}-{background}", *model, f"checkpoint.background={str(background).lower()}")
            run.start()
            run.ended(0)
            rows = run.rows()[1:]       # the first step warms up
            # a checkpoint after step t stands in the row of the step that follows
            saved = [row["seconds_checkpoint"] for row in rows if (row["step"] - 1) % every == 0]
            stall[background].append(sum(saved) / len(saved))
            step[background].append(sum(row["seconds_compute"] + row["seconds_optimizer"] for row in rows) / len(rows))
            if background:
                newest = checkpoints_in(run.folder / "checkpoints")[-1]
                size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
                peer.append(time_dcp(newest, bench.folder / "peer"))
            shutil.rmtree(run.folder)
    title = f"Training stands still for a checkpoint of {size / 1e6:,.0f} MB (ViT-{bench.given.stall_model}), CPU"
    write_row(bench.given.rows, "unattended-stall", title, [
        figure("written behind its back, against in the foreground", ratios(stall[True], stall[False]), "", at_most=0.25),
        figure("behind its back", stall[True], "s"), figure("in the foreground", stall[False], "s"),
        figure("torch.distributed.checkpoint.save of the same tensors", peer, "s"),
        figure("behind its back, against torch's", ratios(stall[True], peer), ""),
        figure("a step of a run that writes behind its back, against one that does not", ratios(step[True], step[False]), ""),
    ], rounds=bench.given.rounds, **bench.facts)


def time_dcp(checkpoint: Path, folder: Path) -> float:
    """Seconds that torch's own synchronous save takes for a checkpoint's tensors (neither hashed nor exported besides)."""
    import torch.distributed.checkpoint as dcp

    from vitscale.checkpoint.store import STATE, read_whole

    tensors = read_whole(checkpoint / STATE, "")
    began = time.perf_counter()
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    took = time.perf_counter() - began
    shutil.rmtree(folder)
    return took


def measure_hang(bench: Bench) -> None:
    """A rank is stopped, as one that hangs in a driver is; until outcome.json names it.  With the default timeout."""
    rounds = min(bench.given.rounds, 3)
    run, named, ended = bench.run("hang", *TINY, f"checkpoint.every={bench.given.every} steps", "duration=1000000 steps"), [], []
    for attempt in range(1, rounds + 1):
        run.start()
        run.until(lambda attempt=attempt: len(run.rows(attempt)) >= 2 * bench.given.every)
        victim = run.ranks()[-1]
        os.kill(victim, signal.SIGSTOP)
        stopped = time.time()
        run.ended(75)
        ended.append(time.time() - stopped)
        outcome = run.outcome
        if outcome["cause"] != "hang" or "rank 1" not in outcome["reason"]:
            raise RuntimeError(f"the hang was not named: {outcome}")
        named.append(outcome["time"] - stopped)
    write_row(bench.given.rows, "unattended-hang", "One of two ranks is stopped (SIGSTOP), default timeout", [
        figure("until the rank is named", named, "s", at_most=60), figure("until all ranks are gone with exit code 75", ended, "s"),
    ], rounds=rounds, **bench.facts)


def measure_goodput(bench: Bench) -> None:
    """Ten faults in one run; where the time went by the run's own books, held against this clock."""
    total, draw = bench.given.goodput_steps, random.Random(0)
    every = max(total // 44, 1)
    run = bench.run("goodput", *TINY, f"duration={total} steps", f"checkpoint.every={every} steps", "resilience.hang_timeout=8",
                    "resilience.spike=null", "data.log_samples=true")
    names = ["kill", "term", "kill", "nan", "usr2", "kill", "hang", "term", "flip", "kill"]
    at = {number: (number + 1) * total // (len(names) + 1) for number in range(len(names))}
    nan = at[names.index("nan")]
    environment = faults(bench.folder, Fault("nan", step=nan, until=nan + 4, rank=1))
    environment["PYTHONPATH"] += os.pathsep + str(HERE.parent)
    began = time.time()
    run.start("--keep-going", **environment)
    for number, name in enumerate(names):
        run.until_step(at[number] + draw.randrange(every))
        if name in ("kill", "hang"):
            os.kill(draw.choice(run.ranks()), signal.SIGKILL if name == "kill" else signal.SIGSTOP)
        elif name == "flip":
            ranks = run.ranks()
            run.process.kill()          # and, since they notice, the ranks
            run.process.wait()
            run.until(lambda ranks=ranks: not any(Path(f"/proc/{pid}").exists() for pid in ranks), dead=True)
            newest = checkpoints_in(run.folder / "checkpoints")[-1]
            victim = draw.choice([path for path in sorted(newest.rglob("*")) if path.is_file()])
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
            time.sleep(1)               # as long as a scheduler may take
            run.start("--keep-going", **environment)
        elif name in ("term", "usr2"):
            run.process.send_signal(signal.SIGTERM if name == "term" else signal.SIGUSR2)
            run.ended(75)
            run.start("--keep-going", **environment)
    run.ended(0)
    outcome = run.outcome
    seconds = outcome["run_seconds"]
    wall_s = outcome["time"] - began
    attempts = (run.folder / "attempts.jsonl").read_text().splitlines()
    steps = step_of(checkpoints_in(run.folder / "checkpoints")[-1])
    if outcome["state"] != "done" or steps != total:
        raise RuntimeError(f"the run did not come to its end: {outcome}")
    skipped = sum(row["end"] - row["start"] for row in map(json.loads, (run.folder / "skips.jsonl").read_text().splitlines())) // 32
    title = (f"{len(names)} faults in {wall_s:,.0f} s: 4 kills, 3 signals, NaNs, a hang (8 s), a damaged checkpoint after a kill of all; "
             "two ranks, tiny model")
    write_row(bench.given.rows, "unattended-goodput", title, [
        figure("sum of the buckets, off the wall time", [100 * abs(sum(seconds.values()) - wall_s) / wall_s], "%", at_most=1),
        figure("goodput: steps that count, of the wall time", [100 * seconds["train"] / wall_s], "%"),
        figure("attempts", [len(attempts)], ""), figure("batches passed over", [skipped], ""),
        *(figure(f"bucket {name}", [value], "s") for name, value in seconds.items()),
    ], rounds=1, **bench.facts)


if __name__ == "__main__":
    main()
