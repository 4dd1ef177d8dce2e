"""Run the recipes of a sweep on this machine, so many at a time; what is done stays done, what failed is tried again."""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vitscale import terminal
from vitscale.counts import plural
from vitscale.errors import EXIT_REQUEUE, EXIT_WRONG_INPUT, ClusterError
from vitscale.files import write_json
from vitscale.metrics import JUDGES
from vitscale.recipe.bound import BRANCH
from vitscale.runfolder import METRICS, OUTCOME, last_row, read_object
from vitscale.scaling.children import Child, ForkServer
from vitscale.scaling.expand import Run
from vitscale.scaling.files import read_json
from vitscale.stopping import heard


@dataclass
class MemberState:
    """How one run is doing."""

    run: Run
    folder: Path
    state: str = "waits"  # waits, runs, done, failed
    attempts: int = 0
    child: Child | None = None
    slot: int = 0
    note: str = ""


def outcome_of(folder: Path) -> dict[str, Any]:
    """outcome.json of a run, {} where there is none or it is damaged."""
    return read_object(folder / OUTCOME)


def is_done(folder: Path) -> bool:
    return outcome_of(folder).get("state") == "done"


def run_all(runs: Sequence[Run], folder: Path, jobs: int, retries: int, console: Console) -> dict[str, MemberState]:
    """Run what is not done, `jobs` at a time; trunks before what branches off them.  Raises ClusterError naming the runs that failed.

    A run that stopped early goes on; one that failed is tried `retries` times more; one whose recipe or data are wrong once.
    """
    states = {run.name: MemberState(run, folder / "runs" / run.name) for run in runs}
    for state in states.values():
        if is_done(state.folder):
            state.state = "done"
    with _shown(states, console) as refresh, _ended_together() as stopping:
        fork_server = ForkServer(folder / "logs" / "fork-server.log")
        try:
            while any(state.state in ("waits", "runs") for state in states.values()):
                fork_server.look()
                for state in states.values():
                    if state.child is not None and state.child.code is not None:
                        _ended(state, retries)
                free = sorted(set(range(jobs)) - {state.slot for state in states.values() if state.state == "runs"})
                ready = [one for one in states.values() if one.state == "waits" and _may_start(one, states)]
                for slot, state in zip(free, ready, strict=False):
                    _start(state, fork_server, folder, slot, jobs)
                refresh()
                if stopping():
                    break
                time.sleep(0.05)
        finally:
            fork_server.close()
    if stopping():
        raise _Stopped("stopped; what ran has saved, and the same command resumes from there")
    failed = [state for state in states.values() if state.state == "failed"]
    if failed:
        lines = "\n".join(f"  {state.run.name}: {state.note}" for state in failed)
        raise ClusterError(f"{len(failed)} of {plural(len(states), 'run')} failed; run the same command again to retry them\n{lines}")
    return states


def _may_start(state: MemberState, states: Mapping[str, MemberState]) -> bool:
    trunk = states.get(state.run.trunk or "")
    return (trunk is None or trunk.state in ("done", "failed")) and not still_held(state.folder)


def still_held(folder: Path) -> bool:
    """Whether a process of this machine still trains the run: one that an earlier, killed sweep left behind and that is saving."""
    try:
        number = max((int(path.name) for path in (folder / "lease").iterdir() if path.name.isdecimal()), default=0)
        holder = json.loads((folder / "lease" / str(number)).read_bytes())
        started = Path(f"/proc/{int(holder['pid'])}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if holder.get("host") != socket.gethostname() or (folder / "lease" / f"{number}.released").exists():
        return False
    return started[0] not in "ZX" and started[19] == holder.get("start")


def _start(state: MemberState, fork_server: ForkServer, folder: Path, slot: int, jobs: int) -> None:
    branch_off(state.run, folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))       # before torch is imported by the first run's process
    devices = _devices()
    log = folder / "logs" / f"{state.run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
    state.child = fork_server.start(folder / "recipes" / f"{state.run.name}.yaml", log, environment)
    state.state, state.slot, state.attempts = "runs", slot, state.attempts + 1


def branch_off(run: Run, folder: Path) -> None:
    """Give a branch its trunk's checkpoint to resume from, if it has none yet; without one it trains from the start, which is as right."""
    if run.trunk is None or run.branch_step is None:
        return
    target = folder / "runs" / run.name / "checkpoints"
    source = next((path for path in (folder / "runs" / run.trunk / "checkpoints").glob("step-*")
                   if path.name.partition("-")[2].isdigit() and int(path.name.partition("-")[2]) == run.branch_step),
                  None)
    if source is None or target.exists():
        return
    beside = target.with_name(f".branch-{os.getpid()}")
    shutil.copytree(source, beside / source.name, copy_function=_link)
    write_json(target.with_name(BRANCH), {"step": run.branch_step, "trunk": run.trunk, "recipe": run.recipe.model_dump(mode="json")})
    os.rename(beside, target)


def _link(source: str, target: str) -> str:
    """A published checkpoint is never written again: two names for one file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _ended(state: MemberState, retries: int) -> None:
    assert state.child is not None
    code, state.child = state.child.code, None
    if code == 0 and is_done(state.folder):
        state.state = "done"
    elif state.attempts <= (min(retries, 1) if code == EXIT_WRONG_INPUT else retries):      # 2 also: an orphan took the folder first
        state.state = "waits"  # it resumes from its last checkpoint
    else:
        state.state = "failed"
        state.note = str(outcome_of(state.folder).get("reason") or f"exit code {code}; see logs/{state.run.name}.log")


def _devices() -> list[str]:
    """The GPUs that runs may have, one each."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one.strip()]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


@contextlib.contextmanager
def _ended_together() -> Iterator[Callable[[], bool]]:
    """Whether the sweep was interrupted or asked to end: the runs then save and stop first."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda got, frame: asked.append(got)) for number in heard()}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stopped(ClusterError):
    exit_code = EXIT_REQUEUE


@contextlib.contextmanager
def _shown(states: Mapping[str, MemberState], console: Console) -> Iterator[Callable[[], None]]:
    """A live table on a terminal; elsewhere a line for each change."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda: live.update(table(states.values()))
        return
    told: dict[str, str] = {}

    def refresh() -> None:
        for name, state in states.items():
            now = f"{state.state}, attempt {state.attempts}" if state.attempts > 1 else state.state
            if told.get(name, "waits") != now and state.state != "waits":
                result = _result(state.folder) if state.state == "done" else ""
                terminal.say(console, f"{name}: {now}{': ' + state.note if state.note else ''}{result}")
            told[name] = now

    yield refresh


def table(states: Any) -> Table:
    """Every run, its state, how far it is, and its loss."""
    states = list(states)
    done = sum(state.state == "done" for state in states)
    shown = terminal.table(["run", "state", "images", "loss", "attempts"], words=(0, 1), title=f"{done} of {len(states)} done")
    for state in states:
        row = last_row(state.folder / METRICS, "loss")
        seen = int(row.get("images", 0))
        shown.add_row(state.run.name, state.state, f"{seen / state.run.d:.0%}" if state.run.d else "",
                      f"{row['loss']:.4f}" if "loss" in row else "", str(state.attempts or ""))
    return shown


def _result(folder: Path) -> str:
    outcome = outcome_of(folder)
    return ", ".join(
        ["", *(f"{one.column} {outcome[one.column]:.4f}" for one in reversed(JUDGES) if isinstance(outcome.get(one.column), (int, float)))])


def manifest(folder: Path) -> dict[str, Any]:
    """sweep.json."""
    return read_json(folder / "sweep.json")
