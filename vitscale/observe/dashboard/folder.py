"""The runs under a folder, each under a name that is safe in an address; one line of the overview for each."""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from vitscale.cluster.slurm import Queued, queue
from vitscale.cluster.state import jobs_of
from vitscale.cluster.status import MARKS, status_of
from vitscale.errors import ClusterError
from vitscale.metrics.system import EVALUATION_LOSS, MFU, SPEED
from vitscale.observe.dashboard.declared import JUDGED
from vitscale.observe.dashboard.table import sampled
from vitscale.observe.meters import data_wait_share
from vitscale.runfolder import (
    BEGUN,
    ENVIRONMENT,
    JOB,
    METRICS,
    OUTCOME,
    RECIPE,
    holder_of,
    last_row,
    mark,
    number,
    page_id,
    printable,
)

SWEEP_MARKS = ("sweep.json", "fit.json", "runs.csv")      # `vitscale sweep` has its runs in a folder `runs` beside these
_SPARKS = 48            # points of the small picture of a run's speed
_QUEUE_S = 10.0         # how long an answer of SLURM's is believed
_MOVING = ("running", "starting", "queued", "suspended", "lost")      # what is said of these changes though no file does


@dataclass(frozen=True)
class RunFolder:
    """A run folder, or a folder of runs (a sweep)."""

    id: str             # of the path below the runs folder: hexadecimal, so that nothing that a name holds gets into an address
    path: Path
    name: str           # for people; any letters, none that steer
    group: str | None   # the id of the folder of runs that it lies in, if it is not the one that is shown


class Runs:
    """A folder of runs as it is now.  Any thread may ask."""

    def __init__(self, root: Path) -> None:
        """Raises ClusterError if there is no such folder."""
        if not root.is_dir():
            raise ClusterError(f"{root}: no such folder; name a folder of runs, or one run's")
        self.root = root
        self._asking = Lock()
        self._lines: dict[str, tuple[object, dict[str, Any]]] = {}
        self._queue: tuple[float, list[Queued] | None] = (-_QUEUE_S, None)

    def places(self) -> tuple[list[RunFolder], list[RunFolder], list[str]]:
        """(runs, folders of runs, what else lies there and could not be shown).  Looks two levels deep."""
        if _is_run(self.root):
            return [self._place(self.root, None)], [], []
        runs: list[RunFolder] = []
        groups: list[RunFolder] = []
        others: list[str] = []
        if _is_sweep(self.root):
            groups.append(self._place(self.root, None))
        for path in _folders(self.root, others):
            if _is_run(path):
                runs.append(self._place(path, None))
                continue
            inside = [inner for inner in _folders(path, others) if _is_run(inner)]
            if _is_sweep(path) and (path / "runs").is_dir():
                inside += [inner for inner in _folders(path / "runs", others) if _is_run(inner)]
            if _is_sweep(self.root) and path.name == "runs":
                runs += [self._place(inner, groups[0].id) for inner in inside]
            elif inside or _is_sweep(path):
                groups.append(self._place(path, None))
                runs += [self._place(inner, groups[-1].id) for inner in inside]
            elif not _is_sweep(self.root):
                others.append(f"{printable(path.name)}: holds no run")
        return runs, groups, others

    def find(self, wanted: str) -> RunFolder | None:
        """The run with this id."""
        return next((place for place in self.places()[0] if place.id == wanted), None)

    def find_group(self, wanted: str) -> RunFolder | None:
        """The folder of runs with this id."""
        return next((place for place in self.places()[1] if place.id == wanted), None)

    def _place(self, path: Path, group: str | None) -> RunFolder:
        name = path.name if path != self.root else self.root.absolute().name
        return RunFolder(page_id(str(path.relative_to(self.root))), path, printable(name), group)

    def overview(self) -> dict[str, Any]:
        runs, groups, others = self.places()
        jobs = self.jobs()
        return {"folder": printable(str(self.root)), "now": time.time(), "runs": [self.line(place, jobs) for place in runs],
                "judges": JUDGED, "groups": [{"id": place.id, "name": place.name} for place in groups], "others": others[:50],
                "num_others": len(others)}

    def jobs(self) -> list[Queued] | None:
        """What SLURM's queue held a moment ago; None without SLURM, and until it has answered for the first time."""
        asked, known = self._queue
        if time.monotonic() - asked >= _QUEUE_S and self._asking.acquire(blocking=False):
            Thread(target=self._ask, daemon=True).start()       # a scheduler that is slow to answer holds up no page
        return known

    def _ask(self) -> None:
        try:
            self._queue = (time.monotonic(), queue())
        except ClusterError:            # it does not answer: what it said before holds no longer
            self._queue = (time.monotonic(), None)
        finally:
            self._asking.release()

    def line(self, place: RunFolder, jobs: list[Queued] | None) -> dict[str, Any]:
        """A run in the overview.  One that rests and whose files are as they were is not looked into again."""
        folder = place.path
        now = time.time()
        holder = holder_of(folder, now)
        files = [mark(folder / name) for name in (METRICS, OUTCOME, RECIPE, JOB, BEGUN, ENVIRONMENT)]
        mine = jobs_of(folder) if jobs else []
        queued = [(entry.job, entry.state) for entry in jobs or () if entry.job in mine]
        known = (files, holder.attempts, holder.alive, holder.released, queued, jobs is None)
        before = self._lines.get(place.id)
        if before is not None and before[0] == known and before[1]["state"] not in _MOVING:
            return before[1]
        status = status_of(folder, jobs, now)
        row = last_row(folder / METRICS, "loss")
        evaluation = last_row(folder / METRICS, EVALUATION_LOSS.column)
        before_size = before[1]["bytes"] if before is not None else -1
        size = files[0][2] if files[0] is not None else 0
        if before is not None and before_size == size:
            spark = before[1]["spark"]
        else:
            spark = [_or_none(number(one.get(SPEED.column))) for one in sampled(folder / METRICS, _SPARKS)]
        found = {
            "id": place.id, "name": place.name, "group": place.group, "state": status.state, "detail": printable(status.detail[:500]),
            "cause": status.cause, "lost_steps": status.lost_steps,
            "step": status.step, "done_ratio": status.done_ratio, "eta_s": status.eta_s,
            SPEED.column: status.images_per_second, MFU.column: _or_none(number(row.get(MFU.column))), "loss": status.loss,
            **{judge["column"]: _or_none(number(evaluation.get(judge["column"]))) for judge in JUDGED},
            "data_wait": _wait(row), "restarts": status.restarts, "step_time": _or_none(number(row.get("time"))),
            "checkpoint_time": None if status.checkpoint_age_s is None else now - status.checkpoint_age_s,
            "job": status.job, "spark": spark, "bytes": size,
        }
        self._lines[place.id] = (known, found)
        return found


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in MARKS)


def _is_sweep(path: Path) -> bool:
    return any((path / name).exists() for name in SWEEP_MARKS)


def _folders(path: Path, others: list[str]) -> list[Path]:
    try:
        return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    except OSError as error:
        others.append(f"{printable(path.name)}: {error.strerror}")
        return []


def _wait(row: dict[str, Any]) -> float | None:
    seconds = {key: number(value) for key, value in row.items() if key.startswith("seconds_")}
    share = data_wait_share({key: value if value == value else 0.0 for key, value in seconds.items()})
    return share if seconds else None


def _or_none(value: float) -> float | None:
    return value if value == value else None
