"""What a batch's loss is."""

from collections.abc import Callable
from typing import Any

import torch

from vitscale.objectives.classification import Classifying, multilabel_hits, per_sample_loss, topk_correct
from vitscale.objectives.dino import SelfDistilling
from vitscale.objectives.distillation import Distilling
from vitscale.objectives.ibot import MaskedDistilling
from vitscale.objectives.lejepa import GaussianEmbedding
from vitscale.objectives.masked import Inpaint, MaskedAutoencoding
from vitscale.objectives.pretext import Puzzling, Rotating
from vitscale.objectives.task import Coupled, Seen, Task
from vitscale.recipe.objectives import Objective
from vitscale.recipe.schema import Model

OBJECTIVES: dict[str, Callable[[Any, Any], Task]] = {
    "classification": Classifying, "distillation": Distilling, "mae": MaskedAutoencoding, "inpainting": Inpaint, "rotation": Rotating,
    "jigsaw": Puzzling, "dino": SelfDistilling, "ibot": MaskedDistilling,
    "dinov2": MaskedDistilling, "lejepa": GaussianEmbedding,
}

__all__ = ["OBJECTIVES", "Coupled", "Seen", "Task", "build_task", "multilabel_hits", "num_parameters", "per_sample_loss", "topk_correct"]


def build_task(model: Model, objective: Objective) -> Task:
    """The model and objective sections of a recipe -> what is asked of the model."""
    return OBJECTIVES[objective.name](model, objective)


def num_parameters(model: Model, objective: Objective) -> int:
    """Of what is trained, counted in the model itself, whose numbers are not made for it.  Raises RecipeError."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_task(model, objective).build().parameters())
