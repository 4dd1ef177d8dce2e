"""How many floating-point operations an image costs.  Exact: equal to torch's FlopCounterMode on the built model."""

from vitscale.plan.families import BY_LABEL, anatomy_of
from vitscale.recipe.objectives import Objective
from vitscale.recipe.schema import Model, ViewSet


def flops_by_component(model: Model, objective: Objective = BY_LABEL, views: tuple[ViewSet, ...] = ()) -> dict[str, int]:
    """FLOPs of one image's forward pass by component; their sum is forward_flops.  views: of the recipe's data.views, all of which count.
    Raises RecipeError.

    A multiply-add is 2 FLOPs; matrix products and convolutions count, elementwise work does not (Kaplan et al. 2020, section 2.1).
    What DeiT and timm print as GFLOPs are multiply-adds: half of this.
    """
    return anatomy_of(model, objective, views).flops


def forward_flops(model: Model, objective: Objective = BY_LABEL, views: tuple[ViewSet, ...] = ()) -> int:
    """FLOPs of one image's forward pass.  Raises RecipeError."""
    return sum(flops_by_component(model, objective, views).values())


def training_flops_per_image(model: Model, objective: Objective = BY_LABEL, views: tuple[ViewSet, ...] = ()) -> int:
    """3 x forward, and once what is looked at without a gradient.

    Recomputation is not counted, as model FLOPs utilisation wants it (Chowdhery et al. 2022, PaLM, appendix B).
    """
    return anatomy_of(model, objective, views).training_flops
