"""All that a run asks of the planner: FLOPs for MFU, and a micro-batch that fits.  It may not know, and then the run does without."""

from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.plan.families import has_formulas
from vitscale.plan.flops import forward_flops, training_flops_per_image
from vitscale.plan.memory import estimate, fitting_micro_batch
from vitscale.recipe.schema import Model, Recipe


@dataclass(frozen=True)
class Forecast:
    """Of a recipe whose model has analytic formulas."""

    recipe: Recipe
    flops_per_image: int        # of training: forward and backward

    def micro_batch(self, world_size: int, local_size: int, device_bytes: int, local_share: int, on_gpu: bool) -> int:
        """The largest that fits: plan/memory.py's fitting_micro_batch.  Raises RecipeError where none does."""
        return fitting_micro_batch(self.recipe, world_size, device_bytes, local_share, on_gpu, local_size)

    def peak_bytes(self, world_size: int, local_size: int, micro_batch: int, micro_steps: int, on_gpu: bool) -> int:
        """Of one rank, at the peak of a step."""
        return estimate(self.recipe, world_size, micro_batch, micro_steps, on_gpu, local_size).total


def forecast(recipe: Recipe) -> Forecast | None:
    """None: of this family of models nobody has written down analytic formulas, and what a run costs shows only as it runs."""
    if not has_formulas(recipe.model):
        return None
    return Forecast(recipe, training_flops_per_image(recipe.model, recipe.objective, recipe.data.views))


def known_forward_flops(model: Model) -> int | None:
    """FLOPs of one image's forward pass; None as forecast() has it."""
    return forward_flops(model) if has_formulas(model) else None


def check_micro_batch(recipe: Recipe) -> None:
    """Raises RecipeError where the micro-batch is left to the planner, which knows nothing of the model."""
    if recipe.micro_batch is None and not has_formulas(recipe.model):
        raise RecipeError(f"micro_batch: is required with model.family {recipe.model.family}, whose memory no analytic formula "
                          "gives: say how many images one rank takes at a time, such as micro_batch=32; if memory runs out, take fewer")
