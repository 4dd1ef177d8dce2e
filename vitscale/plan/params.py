"""How many parameters a model has, component by component.  Exact: equal to the built model's."""

from vitscale.plan.families import BY_LABEL, anatomy_of
from vitscale.recipe.objectives import Objective
from vitscale.recipe.schema import Model


def params_by_component(model: Model, objective: Objective = BY_LABEL) -> dict[str, int]:
    """Counts by component; their sum is count_params.  Raises RecipeError."""
    return anatomy_of(model, objective).params


def count_params(model: Model, objective: Objective = BY_LABEL) -> int:
    """The number of trainable parameters.  Raises RecipeError."""
    return sum(params_by_component(model, objective).values())
