"""Which module of the planner knows which family of models, and what an objective makes of them."""

from collections.abc import Callable
from typing import Any

from vitscale.errors import RecipeError
from vitscale.plan import convnext, masked, swin, vit
from vitscale.plan.anatomy import Anatomy
from vitscale.recipe.objectives import Classification, Inpainting, Mae, Objective
from vitscale.recipe.schema import Model, Vit
from vitscale.shapes.families import check_model, trained_section

# family -> the section taken apart; one that is not here trains all the same, but what it costs is not known (plan/forecast.py)
ANATOMIES: dict[str, Callable[[Any], Anatomy]] = {
    "vit": vit.anatomy, "deit": vit.anatomy, "swin": swin.anatomy, "convnext": convnext.anatomy,
}
BY_LABEL = Classification()


def has_closed_form(model: Model) -> bool:
    return model.family in ANATOMIES


def anatomy_of(model: Model, objective: Objective = BY_LABEL) -> Anatomy:
    """What an objective trains on a model section, taken apart.  Raises RecipeError when the section contradicts itself, and for a
    family without a closed form."""
    if not has_closed_form(model):
        raise RecipeError(f"model.family: of {model.family} no closed form of parameters, FLOPs and memory is known, as there is of "
                          f"{', '.join(ANATOMIES)}, so that what it costs cannot be computed; it trains all the same, and "
                          "`vitscale bench step` measures it")
    check_model(model)
    if isinstance(objective, Mae | Inpainting):
        assert isinstance(model, Vit)       # recipe/check_model.py says so
        return masked.mae_anatomy(model, objective) if isinstance(objective, Mae) else masked.inpainting_anatomy(model, objective)
    return ANATOMIES[model.family](trained_section(model, objective))
