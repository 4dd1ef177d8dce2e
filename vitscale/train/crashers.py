"""The samples that this attempt must not decode, since they ended an earlier one."""

from typing import Any

from vitscale.data.crumbs import Setting, find_crashers
from vitscale.recipe import Recipe
from vitscale.train.prepare import Prepared


def crashers_of(recipe: Recipe, prepared: Prepared, attempt: int) -> list[dict[str, Any]]:
    """Rows of crashers.jsonl, after a look at what the attempt before left.  For rank 0; every rank is told the same."""
    data = recipe.data
    setting = Setting(recipe.model.image, recipe.model.channels, data.exif_orientation == "apply", data.augment.scale, data.augment.ratio,
                      recipe.evaluate.crop)
    return find_crashers(prepared.folder, [prepared.train, prepared.val], setting, attempt)
