"""Which module of the planner knows which family of models."""

from collections.abc import Callable
from typing import Any

from vitscale.errors import RecipeError
from vitscale.plan import convnext, sizes, swin, vit
from vitscale.plan.anatomy import Anatomy
from vitscale.recipe.schema import Model

# family -> (what is wrong with a section once its size is known, the section taken apart)
ANATOMIES: dict[str, tuple[Callable[[Any], list[tuple[str, str]]], Callable[[Any], Anatomy]]] = {
    "vit": (sizes.problems, vit.anatomy),
    "swin": (swin.problems, swin.anatomy),
    "convnext": (convnext.problems, convnext.anatomy),
}


def anatomy_of(model: Model) -> Anatomy:
    """The model section of a recipe, taken apart.  Raises RecipeError when it contradicts itself."""
    check_model(model)
    return ANATOMIES[model.family][1](model)


def check_model(model: Model) -> None:
    """Raises RecipeError with every contradiction that shows only once the size is known."""
    found = ANATOMIES[model.family][0](model)
    if found:
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))
