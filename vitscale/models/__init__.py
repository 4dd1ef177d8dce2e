"""Models: what maps images to logits.  They know nothing of parallelism, optimizers or launchers."""

from collections.abc import Callable
from typing import Any

from vitscale.models import convnext, deit, swin, vit
from vitscale.models.backbone import Backbone
from vitscale.models.init import initial_value, initialise
from vitscale.recipe.schema import Model

MODELS: dict[str, Callable[[Any], Backbone]] = {"vit": vit.build, "deit": deit.build, "swin": swin.build, "convnext": convnext.build}

__all__ = ["MODELS", "Backbone", "build_model", "initial_value", "initialise"]


def build_model(model: Model) -> Backbone:
    """The model section of a recipe -> the model, on torch's current default device (`with torch.device("meta")`).

    Its numbers mean something after initialise() or load_state_dict().  Raises RecipeError when the section contradicts itself.
    """
    return MODELS[model.family](model)
