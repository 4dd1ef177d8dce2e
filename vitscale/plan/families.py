"""Which module of the planner knows which family of models, and what an objective makes of them."""

from collections.abc import Callable
from typing import Any

from vitscale.errors import RecipeError
from vitscale.plan import convnext, masked, sizes, swin, vit
from vitscale.plan.anatomy import Anatomy
from vitscale.recipe.schema import Classification, Inpainting, Jigsaw, Mae, Model, Objective, Rotation, Vit

# family -> (what is wrong with a section once its size is known, the section taken apart)
ANATOMIES: dict[str, tuple[Callable[[Any], list[tuple[str, str]]], Callable[[Any], Anatomy]]] = {
    "vit": (sizes.problems, vit.anatomy),
    "deit": (sizes.problems, vit.anatomy),
    "swin": (swin.problems, swin.anatomy),
    "convnext": (convnext.problems, convnext.anatomy),
}


BY_LABEL = Classification()
TURNS = 4       # classes of rotation: quarter turns


def trained_section(model: Model, objective: Objective) -> Model:
    """The section with as many classes as the objective tells apart."""
    if isinstance(objective, Rotation):
        return model.model_copy(update={"classes": TURNS})
    return model.model_copy(update={"classes": objective.permutations}) if isinstance(objective, Jigsaw) else model


def anatomy_of(model: Model, objective: Objective = BY_LABEL) -> Anatomy:
    """What an objective trains on a model section, taken apart.  Raises RecipeError when the section contradicts itself."""
    check_model(model)
    if isinstance(objective, Mae | Inpainting):
        assert isinstance(model, Vit)       # recipe/check_model.py says so
        return masked.mae_anatomy(model, objective) if isinstance(objective, Mae) else masked.inpainting_anatomy(model, objective)
    return ANATOMIES[model.family][1](trained_section(model, objective))


def check_model(model: Model) -> None:
    """Raises RecipeError with every contradiction that shows only once the size is known."""
    found = ANATOMIES[model.family][0](model)
    if found:
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))
