"""How far a run has come, and when something is due."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from vitscale.metrics import COLUMNS
from vitscale.metrics.system import EVALUATION_LOSS
from vitscale.recipe import Duration
from vitscale.recipe.schema import EarlyStopping


@dataclass(frozen=True)
class Moment:
    """A step boundary."""

    step: int           # batches passed
    images: int         # positions passed


def due(every: Duration | None, before: Moment, after: Moment, num_samples: int) -> bool:
    """True if a multiple of `every` lies in (before, after]; of a time never: that is SaveClock's."""
    if every is None or every.seconds is not None:
        return False
    if every.unit == "steps":
        return after.step // every.amount > before.step // every.amount
    length = every.amount * (num_samples if every.unit == "epochs" else 1)
    # 0.7 epochs of 10 images is a little more than 7 in floating point, and image 7 is due all the same
    return after.images * (1 + 1e-12) // length > before.images * (1 + 1e-12) // length


class SaveClock:
    """When a checkpoint is due by time since the last one.  Only rank 0 looks at its clock (`asks`); the step tells the others, so that all
    save at the same one.  Which step that is has no say in samples or losses."""

    def __init__(self, every: Duration | None, asks: bool) -> None:
        self._seconds = every.seconds if every is not None and asks else None
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()

    @property
    def due(self) -> bool:
        return self._seconds is not None and time.monotonic() - self._since >= self._seconds


def better(metric: str, value: float, than: float | None, by: float = 0.0) -> bool:
    """Whether an evaluation beats the best so far: which way is better is the metric's; what is not finite never beats."""
    if not math.isfinite(value):
        return False
    if than is None or not math.isfinite(than):
        return True
    return value < than - by if COLUMNS[metric].better == "lower" else value > than + by


@dataclass
class Progress:
    """What changes from step to step and must survive a kill."""

    now: Moment = Moment(0, 0)
    best: dict[str, Any] | None = None          # {"step", "metric", "value"}
    stopping: dict[str, Any] = field(default_factory=dict)      # early stopping: {"metric", "value" (its best), "evaluations" (since)}
    guard: dict[str, Any] = field(default_factory=dict)         # what the guard remembers of the losses before
    owes_evaluation: bool = False               # one was left for a request to stop; the next attempt makes it up
    _best_before: dict[str, Any] | None = None  # the best until `best` came

    def note(self, evaluation: dict[str, float], metric: str | None, rule: EarlyStopping | None) -> tuple[bool, bool]:
        """Take an evaluation in.  Returns (it is the best so far, patience has run out)."""
        known = self.best["value"] if self.best and self.best["metric"] == metric else None      # another metric starts afresh
        is_best = metric is not None and better(metric, _sound(evaluation, metric), known)
        if is_best:
            assert metric is not None
            self._best_before = self.best
            self.best = {"step": self.now.step, "metric": metric, "value": evaluation[metric]}
        if rule is None:
            return is_best, False
        if self.stopping.get("metric") != rule.metric:
            self.stopping = {"metric": rule.metric}
        if better(rule.metric, _sound(evaluation, rule.metric), self.stopping.get("value"), rule.min_gain):
            self.stopping = {"metric": rule.metric, "value": evaluation[rule.metric], "evaluations": 0}
        else:
            self.stopping = {**self.stopping, "evaluations": self.stopping.get("evaluations", 0) + 1}
        return is_best, self.out_of_patience(rule)

    def unwritten(self, step: int | None) -> None:
        """The checkpoint of that step could not be written: if it is the best, the one before is the best that there is."""
        if self.best is not None and self.best["step"] == step:
            self.best = self._best_before

    def out_of_patience(self, rule: EarlyStopping | None) -> bool:
        return rule is not None and self.stopping.get("metric") == rule.metric and self.stopping.get("evaluations", 0) >= rule.patience


def _sound(evaluation: dict[str, float], metric: str) -> float:
    """The metric, or NaN if the loss beside it is not finite: weights that are NaN still have an accuracy."""
    return evaluation[metric] if math.isfinite(evaluation.get(EVALUATION_LOSS.column, 0.0)) else math.nan
