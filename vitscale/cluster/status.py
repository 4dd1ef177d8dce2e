"""What is going on in run folders: state, progress, speed, restarts, checkpoints.  Changes nothing, trusts nothing it reads."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitscale.cluster.slurm import Queued
from vitscale.cluster.state import RunState, jobs_of, span, state_of
from vitscale.counts import plural
from vitscale.errors import ClusterError, RecipeError
from vitscale.metrics.system import SPEED
from vitscale.recipe import Duration
from vitscale.recipe.text import read_yaml
from vitscale.runfolder import (
    BEGUN,
    ENVIRONMENT,
    JOB,
    METRICS,
    OUTCOME,
    RECIPE,
    highest_lease,
    known,
    last_row,
    mark,
    printable,
    read_object,
)

MARKS = (JOB, BEGUN, OUTCOME, METRICS, RECIPE)      # a folder with one of these is a run's

LARGEST_RECIPE_BYTES = 1 << 16      # a larger file is none, and takes seconds to find out


@dataclass(frozen=True)
class Status:
    """One run.  None: not known."""

    run: str
    state: str                      # State.name: new, submitted, queued, starting, running, suspended, lost, done, failed, ...
    detail: str                     # why it is in the queue, or how it ended
    cause: str | None               # of its end
    lost_steps: int | None          # of its end: recorded, but in no checkpoint
    step: int | None
    done_ratio: float | None
    images_per_second: float | None
    eta_s: float | None
    loss: float | None
    restarts: int
    checkpoint_age_s: float | None  # of the newest
    step_age_s: float | None        # since the last row of metrics
    job: str | None


def runs_in(folder: Path) -> list[Path]:
    """The run folders in `folder`, or itself if it is one.  Raises ClusterError if there is no such folder."""
    if not folder.is_dir():
        raise ClusterError(f"{folder}: no such folder; name a folder of runs, or one run's")
    if any((folder / name).exists() for name in MARKS):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and any((path / name).exists() for name in MARKS))


def status_of(folder: Path, queue: Sequence[Queued] | None, now: float | None = None) -> Status:
    """`queue`: what SLURM has; None: not known, since there is no SLURM here or it does not answer."""
    now = time.time() if now is None else now
    state, row, jobs = state_of(folder, queue, now), last_row(folder / METRICS, "loss"), jobs_of(folder)
    queued = sorted((entry for entry in queue or () if entry.job in jobs), key=lambda entry: jobs.index(entry.job))
    step, speed, timestamp = (known(row.get(column)) for column in ("step", SPEED.column, "time"))
    done, left = _progress(folder, step, known(row.get("images")))
    return Status(
        run=folder.name, state=state.name, detail=state.detail, cause=state.cause, lost_steps=state.lost_steps,
        step=None if step is None else int(step), done_ratio=done, images_per_second=speed,
        eta_s=left / speed if left is not None and speed and state == RunState("running", "") else None, loss=known(row.get("loss")),
        restarts=max(highest_lease(folder) - 1, 0), checkpoint_age_s=_checkpoint_age(folder / "checkpoints", now),
        step_age_s=None if timestamp is None else max(now - timestamp, 0.0), job=queued[0].job if queued else jobs[-1] if jobs else None)


def _progress(folder: Path, step: float | None, images: float | None) -> tuple[float | None, float | None]:
    """(share of the run that is done, images left): by what its last attempt wrote down, else by its recipe."""
    total = known(read_object(folder / ENVIRONMENT).get("total_images"))
    if total is not None and total > 0 and images is not None:
        return min(images / total, 1.0), max(total - images, 0.0)
    recipe = folder / RECIPE
    length = _length(recipe, tuple(mark(recipe) or ()))
    if length is None:
        return None, None
    amount, unit_images, in_steps = length
    seen = step if in_steps else images
    if seen is None or unit_images is None:
        return None, None
    total = amount * (1.0 if in_steps else unit_images)
    return min(seen / total, 1.0), max(total - seen, 0.0) * (unit_images if in_steps else 1.0)


@lru_cache(maxsize=4096)        # who looks again and again, at many runs, need not parse every recipe anew: 30 ms each
def _length(recipe: Path, version: tuple[int, ...]) -> tuple[float, float | None, bool] | None:
    """(amount, images of one of its units, whether these are steps) of a run's duration, by the keys of its recipe that say so.

    The rest of the recipe may be of another version.  None: they are not there.
    """
    try:
        if not 0 < recipe.stat().st_size <= LARGEST_RECIPE_BYTES:
            return None
        values = read_yaml(recipe.read_text(encoding="utf-8"), str(recipe))
        duration, batch = Duration.parse(values["duration"]), float(values["global_batch"])
        samples = values["data"].get("num_samples")
        unit_images = {"steps": batch, "images": 1.0, "epochs": None if samples is None else float(samples)}[duration.unit]
        return (duration.amount, unit_images, duration.unit == "steps") if duration.amount > 0 and unit_images != 0 else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecipeError):
        return None


def _checkpoint_age(folder: Path, now: float) -> float | None:
    try:
        times = [path.stat().st_mtime for path in folder.iterdir() if path.name.startswith("step-") and path.name[5:].isdecimal()]
    except OSError:
        return None
    return max(now - max(times), 0.0) if times else None


def as_json(found: Sequence[Status]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def on_one_screen(found: Sequence[Status], lines: int) -> tuple[list[Status], str]:
    """Those whose lines fit, in their order, and a line for the others ("" if there are none).

    What runs or waits goes before what ended badly, that before what is done; of equal ones those that made a step last.
    """
    if len(found) <= lines:
        return list(found), ""
    urgent = {**dict.fromkeys(("running", "starting", "queued"), 0), **dict.fromkeys(("done", "new"), 2)}
    ranked = sorted(found, key=lambda one: (urgent.get(one.state, 1), math.inf if one.step_age_s is None else one.step_age_s))
    shown = {one.run for one in ranked[:max(lines, 1)]}
    left = Counter(one.state for one in ranked[max(lines, 1):])
    told = ", ".join(f"{count} {printable(state)}" for state, count in left.most_common())
    return [one for one in found if one.run in shown], f"and {told}; `vitscale status --all` lists them too"


def table(found: Sequence[Status], width: int) -> list[str]:
    """Lines of at most `width` letters."""
    heads = ("run", "state", "step", "done", "img/s", "ETA", "loss", "restarts", "checkpoint", "job", "")
    rows = [heads]
    for one in found:
        stuck = f"no step for {_age(one.step_age_s)}" if one.state == "running" and (one.step_age_s or 0) > 120 else ""
        rows.append((printable(one.run), printable(one.state), _text(one.step, "{:,}"), _text(one.done_ratio, "{:.0%}"),
                     _text(one.images_per_second, "{:,.0f}"), _age(one.eta_s), _text(one.loss, "{:.4g}"), str(one.restarts),
                     _text(one.checkpoint_age_s and _age(one.checkpoint_age_s), "{} ago"), one.job or "-", printable(stuck or one.detail)))
    widths = [min(max(len(row[column]) for row in rows), 40) for column in range(len(heads))]
    right = {2, 3, 4, 5, 6, 7, 8}
    lines = []
    for row in rows:
        cells = [_cut(cell, wide).rjust(wide) if column in right else _cut(cell, wide).ljust(wide)
                 for column, (cell, wide) in enumerate(zip(row[:-1], widths[:-1], strict=True))]
        lines.append(_cut("  ".join([*cells, row[-1]]).rstrip(), width))
    return lines


def others(folders: Sequence[Path], queue: Sequence[Queued] | None, width: int, why: str = "") -> list[str]:
    """Lines for the user's jobs that belong to none of these runs, and for the want of SLURM where it has run some of them."""
    shown = {job for folder in folders for job in jobs_of(folder)}
    if queue is None:
        return ["", f"what is in SLURM's queue is not known: {why}"] if shown else []
    lines = [f"{job.job}  {printable(job.name)}  {job.state.lower()}  {job.elapsed}  {printable(job.reason)}" for job in queue
             if job.job not in shown]
    if not lines:
        return []
    return ["", f"{plural(len(lines), 'other job')} in the queue:", *(_cut(line, width) for line in lines)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _text(value: object, form: str) -> str:
    return "-" if value is None else form.format(value)


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)
