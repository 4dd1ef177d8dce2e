"""What a batch's loss is."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitscale.objectives.classification import multilabel_hits, per_sample_loss, topk_correct
from vitscale.recipe.schema import Classification, Objective

LossPerSample = Callable[[Tensor, Tensor], Tensor]


def _classification(objective: Classification, classes: int) -> LossPerSample:
    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[-1] != classes:
            raise ValueError(f"wants logits of {classes} classes, got {logits.shape[-1]}")
        return per_sample_loss(logits, labels, objective.loss, objective.label_smoothing)

    return losses


OBJECTIVES: dict[str, Callable[[Any, int], LossPerSample]] = {"classification": _classification}

__all__ = ["OBJECTIVES", "LossPerSample", "build_objective", "multilabel_hits", "per_sample_loss", "topk_correct"]


def build_objective(objective: Objective, classes: int) -> LossPerSample:
    """The objective section of a recipe -> (logits (B, classes), labels) -> losses (B,)."""
    return OBJECTIVES[objective.name](objective, classes)
