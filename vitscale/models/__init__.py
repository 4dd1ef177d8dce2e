"""Models: what maps images to logits.  They know nothing of parallelism, optimizers or launchers."""

from torch import nn

from vitscale.models import vit
from vitscale.models.init import initial_value, initialise
from vitscale.recipe.schema import Model

MODELS = {"vit": vit.build}

__all__ = ["MODELS", "build_model", "initial_value", "initialise"]


def build_model(model: Model) -> nn.Module:
    """The model section of a recipe -> the model, on torch's current default device (`with torch.device("meta")`).

    Its numbers mean something after initialise() or load_state_dict().  Raises RecipeError when the section contradicts itself.
    """
    return MODELS[model.family](model)
