"""What is asked of a model on a batch: what it is given, how wrong its answer is, and what else is told of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitscale.metrics import Metric, Numbers, numbers_of
from vitscale.models import Backbone
from vitscale.objectives.rows import Row, Rows
from vitscale.recipe.objectives import Objective
from vitscale.recipe.schedules import Now, NumberSchedule


@dataclass(frozen=True)
class Coupled:
    """What a micro-batch is told of the rest of its step."""

    now: Now
    # by name what couple() gave: (b, ...) for each of its samples, or of ragged rows those of its samples
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)       # of the objective, as it was before the step


@dataclass(frozen=True)
class Seen:
    """A micro-batch on the device, as a task sees it."""

    images: Tensor              # (v b, C, S, S) fp32, augmented and normalised: of the first set of views, mostly the only one, of one view
    labels: Tensor              # (b,) int64 or targets (b, classes) float; zeros where the recipe has no labels
    draws: Tensor | None = None     # (b, num_draws) fp32 uniforms in [0, 1), by sample
    more: tuple[Tensor, ...] = ()   # images of the other sets of views
    anchors: tuple[Tensor, ...] = ()    # the teacher's views as a frozen anchor sees them, (v b, C, S', S') of each set that has some
    coupled: Coupled | None = None  # of a task that surveys
    on_host: NDArray[np.float32] | None = None      # the draws, for choices whose size the host must know

    @property
    def views(self) -> tuple[Tensor, ...]:
        """Images of every set, in the order of data.views; in each those of the first view of all samples first."""
        return self.images, *self.more


def is_evaluation(seen: Seen) -> bool:
    """Whether these are the single views of an evaluation, where training would compare two at least."""
    return sum(len(images) for images in seen.views) == len(seen.labels)


class Networks(Protocol):
    """What a survey may ask, without a gradient; each is given what inputs() would give the model, and is in evaluation mode."""

    def student(self, images: Tensor, *more: Any) -> Any:
        """The model that is trained, as it is before the step; in training with the branches left out that losses() will miss too."""

    def teacher(self, images: Tensor, *more: Any) -> Any:
        """Its average: of an objective with Averaged among its companions."""


@dataclass(frozen=True)
class Averaged:
    """A companion: the moving average of all that is trained, with this momentum."""

    momentum: NumberSchedule


@dataclass(frozen=True)
class Frozen:
    """A companion that is given, and stays as it is: a run's folder or another library's."""

    source: str
    grid: tuple[int, int] | None = None     # it is asked for features of patches, brought to this grid (h, w), and not for logits
    image: int | None = None                # pixels on a side of what it is shown; None: it is shown the student's, as it was trained


Companion = Averaged | Frozen
# images (b, C, S, S) as the student sees them -> logits (b, classes), or features (b, h w, D) of patches; keeps no gradient
Teacher = Callable[[Tensor], Tensor]


class Task(ABC):
    """One objective of a recipe with one model.  It holds no parameters that are trained: those belong to what build() gives.

    Losses that depend on other samples of the global batch are computed in three parts.  survey() collects, without a gradient, what a
    loss needs to know of each sample, for every micro-batch; couple() combines that over the whole global batch, once; then the model and
    losses() run for every micro-batch, given what couple() returned.  A loss of a sample by itself (`surveys` False) has the last alone.
    """

    objective: Objective
    num_draws = 0               # uniforms that it wants for each sample; drawn on the host by key, so that no rank or device changes them
    surveys = False             # survey() and couple() are asked
    teacher: Teacher | None = None      # of a Frozen companion: whoever knows how to read one puts it here
    # How far a sample's loss looks: at itself alone, at its group (data.group), or at the whole global batch.
    coupling: Literal["none", "group", "batch"] = "none"

    @abstractmethod
    def build(self) -> Backbone:
        """The model that is trained, on torch's current default device: the backbone, and whatever the objective adds to it."""

    def companions(self) -> tuple[Companion, ...]:
        """The networks that it wants besides; one Averaged at most."""
        return ()

    @property
    def momentum(self) -> NumberSchedule | None:
        """Of the averaged companion; None: it has none."""
        return next((one.momentum for one in self.companions() if isinstance(one, Averaged)), None)

    def new_state(self) -> dict[str, Tensor]:
        """What it remembers from step to step before the first: small, fp32, on the CPU; the same on every rank.  Checkpoints hold it."""
        return {}

    def survey(self, networks: Networks, seen: Seen) -> dict[str, Row]:
        """Collect what losses need to know of each sample of a micro-batch, without a gradient: rows (b, ...), or ragged ones, by name.
        In evaluation too, where couple() is not asked."""
        return {}

    def couple(self, rows: Rows, state: Mapping[str, Tensor], now: Now) -> tuple[Mapping[str, Row], Mapping[str, Tensor]]:
        """Combine what survey() collected over the global batch: the rows of all micro-batches of this rank -> the rows (n, ...) that
        losses() is told of, and the state after the step.
        Ragged ones have the name and the owners that they were surveyed with.

        Asked once a step, on every rank; what it wants to know of other ranks' samples it asks of `rows`.
        """
        return rows, state

    def resting(self, now: Now) -> tuple[str, ...]:
        """How the names of parameters begin that are not to learn in this step."""
        return ()

    def inputs(self, seen: Seen) -> tuple[Any, ...]:
        """What the model is given: its images, and after `keep` whatever else its forward takes."""
        return (seen.images,)

    @abstractmethod
    def losses(self, output: Any, seen: Seen) -> Tensor:
        """The model's output -> losses (b,) in fp32."""

    def features(self, output: Any, seen: Seen) -> Tensor:
        """(b, D) of an evaluation's images: what its backbone is to be used for.  Only objectives that compare views have them."""
        raise NotImplementedError(f"{self.objective.name} has no features of its own to evaluate")

    def evaluation_losses(self, output: Any, seen: Seen) -> Tensor:
        """Losses (b,) in fp32 as an evaluation reports them: those of training, but for what only training adds."""
        return self.losses(output, seen)

    @property
    def numbers(self) -> Numbers:
        """What it tells besides the loss: vitscale/metrics/of_objectives.py."""
        return numbers_of(self.objective.name)

    def measured(self, numbers: Iterable[Metric], output: Any, seen: Seen) -> dict[str, Tensor]:
        """Those of `numbers` that this task has, (b,) each, by their columns."""
        found = {one.column: one.measure(self, output, seen) for one in numbers if one.measure is not None}
        return {column: values for column, values in found.items() if values is not None}
