"""What is wrong with a section of any family once its size is known, and what an objective makes of it."""

from vitscale.errors import RecipeError
from vitscale.recipe.fields import code_at
from vitscale.recipe.objectives import Objective
from vitscale.recipe.schema import Model


def check_model(model: Model) -> None:
    """Raises RecipeError with every contradiction that shows only once the size is known."""
    if model.code.problems is not None and (found := code_at(model.code.problems)(model)):
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))


def trained_section(model: Model, objective: Objective) -> Model:
    """The section with as many classes as the objective tells apart."""
    own = objective.own_classes
    return model if own is None else model.model_copy(update={"classes": own})
