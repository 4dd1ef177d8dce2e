"""When training has gone wrong by its own numbers, and which batches are at fault.  Pure: needs neither torch nor files.

Two rules, over the loss of each step and whether its update was made:

* Not finite: `max_nonfinite` steps in a row whose update was left out for a loss or gradient that is not finite; at the end of the run one
  is enough, since no later step can show that the weights are good.
* Spike: `spike.in_a_row` losses in a row above  median + deviations x max(1.4826 x MAD, FLOOR x scale).  Median and MAD (median absolute
  deviation; 1.4826 of it are a normal distribution's standard deviation: Rousseeuw & Croux 1993) are those of the last `window` accepted
  losses; unlike mean and standard deviation, some outliers among them move them little.  A suspicious loss is accepted only once the
  next ordinary one has proven it harmless.

The answer is that of PaLM (Chowdhery et al. 2022, section 5.1): go back to a checkpoint from before the spike and pass over the batches
seen before and during it, since spikes came of a batch together with a state of the weights, and other batches at that state did not
repeat them.  There 200 to 500 batches were passed over by hand; here it is from the batch before the first suspicious loss (a loss is
measured before its own update, so that batch's update caused it; Lightning's SpikeDetection passes over the same one) to the last one
seen.  If more was at fault, the next rollback passes over that too.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from vitscale.recipe.schema import Resilience

# The least spread that is assumed, as a share of `scale`: the median of the run's first window, the loss of a model that knows little.
# A loss can lie very flat, as in the first steps of a warm-up (6.907 +- 0.001 for 1000 classes), or near nothing with a heavy tail, as
# late in a run that learns its data by heart (mostly 1e-4, now and then 0.1).  Ten of its deviations are not worth a rollback there:
# with the default of 10 deviations a spike must rise by a tenth of what the loss began with.
FLOOR = 0.01


@dataclass(frozen=True)
class RollBack:
    """Roll back.  The same on every rank, as the numbers are that it comes from."""

    cause: Literal["nonfinite", "spike"]
    before_step: int            # a checkpoint of this step, or a later one, may hold the harm already
    skip: tuple[int, int]       # positions [start, end) of the batches at fault, to be passed over
    reason: str


class Guard:
    """Fed each step, in order, by every rank with the same numbers; so every rank comes to the same verdict without a word."""

    def __init__(self, settings: Resilience, step: int, memory: Mapping[str, Any]) -> None:
        """Begin after `step`, with what `memory()` was then (empty: nothing is known, and there is no spike rule for a window)."""
        self._max_nonfinite, self._spike = settings.max_nonfinite, settings.spike
        self._accepted: deque[float] = deque(memory.get("losses", ()), settings.spike.window if settings.spike else 0)
        self._scale: float | None = memory.get("scale")
        self._updated: tuple[int, int | None] = step, None      # step of the last update, and where its batch starts if it was seen
        self._any_update = False
        self.ever_updated: bool = memory.get("updated", step > 0)      # whether the run has made an update at all
        self._nonfinite: list[_Seen] = []       # the streak under way
        self._high: list[_Seen] = []            # the streak under way: suspicious losses, and those that are not finite among them

    @property
    def calm(self) -> bool:
        """No streak is under way.  A checkpoint of another moment might be one to be thrown away, and must not displace a good one."""
        return not self._nonfinite and not self._high

    def memory(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a resumed run comes to the same verdicts."""
        return {"losses": list(self._accepted), "scale": self._scale, "updated": self.ever_updated}

    def judge(self, step: int, start: int, end: int, loss: float, applied: bool) -> RollBack | None:
        """Take in a step: its number (the first is 1), its batch's positions [start, end), its loss, and whether the update was made."""
        seen = _Seen(step, start, loss)
        finite = applied and math.isfinite(loss)
        limit = self._limit() if finite else math.inf
        self._nonfinite = [] if finite else [*self._nonfinite, seen]
        if loss > limit or (self._high and not finite):
            self._high.append(seen)
        elif finite:
            for one in [*self._high, seen]:
                self._accept(one.loss)
            self._high = []
        # `_updated` is still the update before this step; within a streak it is the one before the streak
        verdict = self._verdict(end)
        self.ever_updated |= applied
        if applied and not self._high:
            self._updated, self._any_update = (step, start), True
        return verdict

    def judge_end(self, step: int, start: int, end: int, is_sound: bool) -> RollBack | None:
        """Whether the run may end with this step, the last that judge() was given: not within a streak of refused updates, nor with weights
        that are not finite (`is_sound` False), which the next step would have shown."""
        if self._nonfinite:
            return self._verdict(end, at_end=True)
        if not is_sound:
            return RollBack("nonfinite", step, (start, end), f"the weights are not finite after step {step}, the last")
        return None

    def _verdict(self, end: int, at_end: bool = False) -> RollBack | None:
        spiked = self._spike is not None and len(self._high) >= self._spike.in_a_row
        if not spiked and len(self._nonfinite) < (1 if at_end else self._max_nonfinite):
            return None
        reason = f"loss above {self._limit():.4g} in {_span(self._high)}; the median of {len(self._accepted)} before is " \
                 f"{median(self._accepted):.4g}" if spiked else f"loss or gradient was not finite in {_span(self._nonfinite)}"
        step, start = self._updated
        if self._high:          # the update before the first suspicious loss is at fault, also if what followed was not finite
            first = self._high[0].start if start is None else start
        else:                   # the first batch that is not finite changed nothing: what came before it is good
            first = self._nonfinite[0].start
            # but if no update has been made since the beginning, it was not good to begin from
            step = self._nonfinite[0].step if self._any_update else step
        return RollBack("spike" if spiked else "nonfinite", step, (first, end), reason)

    def _limit(self) -> float:
        """Above it a loss is suspicious."""
        if self._spike is None or self._scale is None or len(self._accepted) < self._spike.window:
            return math.inf
        middle = median(self._accepted)
        spread = 1.4826 * median(abs(loss - middle) for loss in self._accepted)
        return middle + self._spike.deviations * max(spread, FLOOR * abs(self._scale))

    def _accept(self, loss: float) -> None:
        if self._spike is None or not math.isfinite(loss):
            return
        self._accepted.append(loss)
        if self._scale is None and len(self._accepted) == self._spike.window:
            self._scale = median(self._accepted)


@dataclass(frozen=True)
class _Seen:
    step: int
    start: int
    loss: float


def _span(streak: list[_Seen]) -> str:
    losses = ", ".join(f"{one.loss:.4g}" for one in streak)
    return f"{len(streak)} steps in a row (steps {streak[0].step} to {streak[-1].step}, losses {losses})"
