"""What is wrong with a section of any family once its size is known, and what an objective makes of it."""

from collections.abc import Callable
from typing import Any

from vitscale.errors import RecipeError
from vitscale.recipe.objectives import Objective
from vitscale.recipe.schema import Model
from vitscale.shapes import convnext, swin, vit

# family -> (dotted key, sentence) for what shows only once the size is known; of a family that is not here nothing does
PROBLEMS: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
    "vit": vit.problems, "deit": vit.problems, "swin": swin.problems, "convnext": convnext.problems,
}


def check_model(model: Model) -> None:
    """Raises RecipeError with every contradiction that shows only once the size is known."""
    find = PROBLEMS.get(model.family)
    if find is not None and (found := find(model)):
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))


def trained_section(model: Model, objective: Objective) -> Model:
    """The section with as many classes as the objective tells apart."""
    own = objective.own_classes
    return model if own is None else model.model_copy(update={"classes": own})
