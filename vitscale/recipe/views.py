"""The views of an image that a recipe asks for, with nothing left to other sections."""

from dataclasses import dataclass

from vitscale.recipe.objectives import Ibot
from vitscale.recipe.schema import Augment, Recipe


@dataclass(frozen=True)
class ViewKind:
    """`count` views of every image, cut out and changed alike."""

    name: str
    count: int
    image: int          # pixels on a side
    augment: Augment
    same_as: int | None = None      # of an anchor's: with whose cut and flip the first of them comes, by its number among all views


def view_kinds(recipe: Recipe) -> tuple[ViewKind, ...]:
    """Those of data.views; without any, the one view that most objectives look at.  After them those that a frozen anchor is shown."""
    size, augment = recipe.model.image, recipe.data.augment
    kinds = tuple(ViewKind(one.name, one.count, one.image or size, one.augment or augment) for one in recipe.data.views) or (
        ViewKind("image", 1, size, augment),)
    return kinds + _anchored(recipe, kinds)


def _anchored(recipe: Recipe, kinds: tuple[ViewKind, ...]) -> tuple[ViewKind, ...]:
    """The teacher's views once more, cut out of the same boxes of the image at objective.gram_image pixels, with colours as they are
    (Siméoni et al. 2025, section 4.3; gram_teacher_no_distortions in their recipes)."""
    objective, found, first = recipe.objective, [], 0
    if not isinstance(objective, Ibot) or not objective.gram:
        return ()
    for kind in kinds:
        if (count := min(kind.count, objective.global_views - first)) > 0:
            plain = Augment(**{key: getattr(kind.augment, key) for key in ("crop", "scale", "ratio", "flip", "mean", "std")})
            found.append(ViewKind(f"{kind.name}_anchor", count, objective.gram_image or recipe.model.image, plain, first))
        first += kind.count
    return tuple(found)


def num_values(recipe: Recipe) -> int:
    """Of an image in all its views, an anchor's among them: pixels times channels."""
    return recipe.model.channels * sum(one.count * one.image**2 for one in view_kinds(recipe))
