"""What an objective trains on a model of any family, taken apart."""

from typing import cast

from vitscale.errors import RecipeError
from vitscale.plan import masked, self_distilled
from vitscale.plan.anatomy import Anatomy
from vitscale.plan.frozen import with_frozen
from vitscale.recipe.fields import code_at
from vitscale.recipe.objectives import Classification, Dino, Inpainting, Lejepa, Mae, Objective
from vitscale.recipe.schema import FAMILIES, Model, ViewSet, Vit
from vitscale.shapes.families import check_model, trained_section

BY_LABEL = Classification()


def has_formulas(model: Model) -> bool:
    """Else it trains all the same, but what it costs is not known (plan/forecast.py)."""
    return model.code.anatomy is not None


def anatomy_of(model: Model, objective: Objective = BY_LABEL, views: tuple[ViewSet, ...] = ()) -> Anatomy:
    """What an objective trains on a model section, taken apart; views: of an objective that wants them (data.views).  Raises RecipeError
    when the section contradicts itself, and for a family without analytic formulas."""
    if model.code.anatomy is None:
        known = ", ".join(name for name, section in FAMILIES.items() if section.code.anatomy)
        raise RecipeError(f"model.family: {model.family} has no analytic formulas of parameters, FLOPs and memory, as {known} have, so "
                          "what it costs cannot be computed; it trains all the same, and `vitscale bench step` measures it")
    check_model(model)
    return with_frozen(_trained(model, objective, views), model, objective)


def _trained(model: Model, objective: Objective, views: tuple[ViewSet, ...]) -> Anatomy:
    if isinstance(objective, Mae | Inpainting | Dino | Lejepa):
        assert isinstance(model, Vit)       # recipe/check_objective.py says so
        if isinstance(objective, Dino):
            return self_distilled.dino_anatomy(model, objective, views)
        if isinstance(objective, Lejepa):
            return self_distilled.lejepa_anatomy(model, objective, views)
        return masked.mae_anatomy(model, objective) if isinstance(objective, Mae) else masked.inpainting_anatomy(model, objective)
    assert model.code.anatomy is not None
    return cast(Anatomy, code_at(model.code.anatomy)(trained_section(model, objective)))
