"""Masks: a class for every pixel of an image, in a member beside it; cut out as an evaluation cuts the image."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vitscale.data import pillow
from vitscale.data.bad import BadSample, only_bad_samples
from vitscale.data.crop import CentreCrop
from vitscale.data.header import still
from vitscale.data.image import checked_header
from vitscale.data.index import SetIndex
from vitscale.data.labels import named
from vitscale.data.reader import ShardReader
from vitscale.errors import DataError
from vitscale.recipe import Recipe

UNLABELLED = 255        # of pixels without a class, as PASCAL VOC, Cityscapes and ADE20K write them


@dataclass(frozen=True)
class MaskRule:
    """Which member is the mask, and how many classes there are."""

    member: str
    classes: int

    @classmethod
    def of(cls, recipe: Recipe) -> Self | None:
        """None: nothing asks for masks."""
        data = recipe.data
        wanted = "segmentation" in recipe.evaluate.features
        return cls(data.mask, data.mask_classes) if wanted and data.mask is not None and data.mask_classes is not None else None


def mask_of(index: SetIndex, reader: ShardReader, shard: int, number: int, rule: MaskRule) -> NDArray[np.uint8]:
    """(h, w): the class of each pixel of one sample, UNLABELLED where it has none.

    Raises BadSample("label") for what is no mask; DataError for a sample without one and for a class that there is not, since more than
    one sample will be like that.
    """
    members = {ext: (offset, size) for ext, offset, size in index.shard(shard).members(number)}
    if rule.member not in members:
        raise DataError(f"{named(index, shard, number)} has no '{rule.member}' member (it has {', '.join(members)}); name the masks with "
                        "data.mask, or leave segmentation out of evaluate.features")
    mask = read_mask(reader.pread(shard, *members[rule.member]))
    largest = int(mask[mask != UNLABELLED].max(initial=0))
    if largest >= rule.classes:
        raise DataError(f"{named(index, shard, number)} has a pixel of class {largest}, but data.mask_classes is {rule.classes} "
                        f"(classes 0 to {rule.classes - 1}, {UNLABELLED} where there is none); set it to the number of classes")
    return mask


@only_bad_samples
def read_mask(data: bytes) -> NDArray[np.uint8]:
    """A PNG of one number a pixel, grey or into a palette -> (h, w).  Raises BadSample("label")."""
    try:
        header = checked_header(data)
        if header.format != "PNG":
            raise BadSample("label", f"its mask is {header.format}; wanted is PNG, which keeps numbers as they are")
        return pillow.numbers(still(data, header), header)
    except BadSample as error:
        raise BadSample("label", f"its mask: {error}") from error


def cut_mask(mask: NDArray[np.uint8], crop: CentreCrop, size: int) -> NDArray[np.uint8]:
    """(h, w) -> (S, S): what an evaluation sees of the image, each of its pixels with the class of the nearest of the mask's."""
    height, width = mask.shape
    resized = crop.resized(height, width, size)
    top, left, _, _ = crop.middle(*resized, size)
    rows, columns = (((np.arange(size) + first + 0.5) * old / new).astype(np.int64)
                     for first, old, new in zip((top, left), (height, width), resized, strict=True))
    return mask[rows[:, None], columns]


def check_masks(index: SetIndex, rule: MaskRule, limit: int = 64) -> None:
    """Look at up to `limit` masks, spread evenly.  Raises DataError for the first that is missing, none, or has a class too many."""
    reader = ShardReader(index)
    for shard, number in index.spread(limit):
        try:
            mask_of(index, reader, shard, number, rule)
        except BadSample as error:
            raise DataError(f"{named(index, shard, number)}: {error}; wanted is a PNG with a class number at each pixel") from None
    reader.close()
