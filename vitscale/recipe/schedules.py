"""Schedules of numbers, as functions of images seen: a teacher's momentum, temperatures.  Pure: knows no torch."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator

from vitscale.recipe.duration import Duration
from vitscale.recipe.fields import Section


class NumberSchedule(Section):
    """From `start` to `end` while `over` passes, and `end` from there on."""

    start: float
    end: float
    over: Duration | None = None            # null: the whole run
    shape: Literal["cosine", "linear"] = "cosine"   # half a cosine, or a straight line


def constant(value: float) -> NumberSchedule:
    return NumberSchedule(start=value, end=value)


def _from_number(value: Any) -> Any:
    """A number stays what it is."""
    return constant(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


ScheduleOrNumber: TypeAlias = Annotated[NumberSchedule, BeforeValidator(_from_number, json_schema_input_type=NumberSchedule | float)]


@dataclass(frozen=True)
class Now:
    """How far a run is at the end of a step, in images, and what durations are in it."""

    images: int                 # seen, those of the step itself among them
    total: int                  # of the whole run
    epoch: int | None = None    # None: it has no epochs
    global_batch: int = 1
    repeats: int = 1

    def length(self, duration: Duration) -> int:
        """In images.  Raises ValueError for what no run of this kind has."""
        return duration.images(self.epoch, self.global_batch, self.repeats)

    def value(self, schedule: NumberSchedule) -> float:
        """What the schedule is at by now."""
        span = self.total if schedule.over is None else self.length(schedule.over)
        share = min(self.images / span, 1.0) if span > 0 else 1.0
        if schedule.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return schedule.start + (schedule.end - schedule.start) * share
