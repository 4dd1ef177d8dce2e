"""The views of an image that a recipe asks for, with nothing left to other sections."""

from dataclasses import dataclass

from vitscale.recipe.schema import Augment, Recipe


@dataclass(frozen=True)
class ViewKind:
    """`count` views of every image, cut out and changed alike."""

    name: str
    count: int
    image: int          # pixels on a side
    augment: Augment


def view_kinds(recipe: Recipe) -> tuple[ViewKind, ...]:
    """Those of data.views; without any, the one view that most objectives look at."""
    size, augment = recipe.model.image, recipe.data.augment
    return tuple(ViewKind(one.name, one.count, one.image or size, one.augment or augment) for one in recipe.data.views) or (
        ViewKind("image", 1, size, augment),)


def num_values(recipe: Recipe) -> int:
    """Of an image in all its views: pixels times channels."""
    return recipe.model.channels * sum(one.count * one.image**2 for one in view_kinds(recipe))
