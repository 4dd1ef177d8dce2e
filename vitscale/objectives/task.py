"""What is asked of a model on a batch: what it is given, how wrong its answer is, and what else is told of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitscale.metrics import Metric, Numbers, numbers_of
from vitscale.models import Backbone
from vitscale.recipe.objectives import Objective


@dataclass(frozen=True)
class Seen:
    """A micro-batch on the device, as a task sees it."""

    images: Tensor              # (b, C, S, S) fp32, augmented and normalised
    labels: Tensor              # (b,) int64 or targets (b, classes) float; zeros where the recipe has no labels
    draws: Tensor | None = None     # (b, num_draws) fp32 uniforms in [0, 1), by sample


class Task(ABC):
    """One objective of a recipe with one model.  It holds no parameters that are trained: those belong to what build() gives."""

    objective: Objective
    num_draws = 0               # uniforms that it wants for each sample; drawn on the host by key, so that no rank or device changes them

    @abstractmethod
    def build(self) -> Backbone:
        """The model that is trained, on torch's current default device: the backbone, and whatever the objective adds to it."""

    def inputs(self, seen: Seen) -> tuple[Tensor, ...]:
        """What the model is given: its images, and after `keep` whatever else its forward takes."""
        return (seen.images,)

    @abstractmethod
    def losses(self, output: Any, seen: Seen) -> Tensor:
        """The model's output -> losses (b,) in fp32."""

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
