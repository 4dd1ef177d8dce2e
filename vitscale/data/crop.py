"""Which box of an image is taken.  Pure numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitscale.data.draws import CROP

_TRIES = 10
DRAWS = CROP.stop - CROP.start      # numbers in [0, 1) that one random box takes


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop (Szegedy et al. 2015, section 6): a share of the area and an aspect ratio (width over height)."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, height: int, width: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels, inside the image.  draws: 22 numbers in [0, 1).

        torchvision's RandomResizedCrop: ten tries of an area and a log-uniform ratio; when none fits, the largest centre box whose
        ratio is allowed.  Here a try always takes its own two numbers and the place the last two, whichever try fits.
        """
        area = height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_TRIES):
            target = area * (self.scale[0] + draws[2 * attempt] * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + draws[2 * attempt + 1] * (high - low))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1))
                return top, left, h, w
        w, h = width, height
        if width / height < self.ratio[0]:
            h = min(max(round(width / self.ratio[0]), 1), height)
        elif width / height > self.ratio[1]:
            w = min(max(round(height * self.ratio[1]), 1), width)
        return (height - h) // 2, (width - w) // 2, h, w


def reduction(box: tuple[int, int, int, int], size: int) -> int:
    """How many pixels a side may become one before the box is resized to (size, size): 1, 2, 4 or 8, what a JPEG can be decoded at.

    Half as many again as the output needs must be left, or the decoder's own filter shows: against resizing in one pass the mean error is
    0.7 of 255 so (docs/data.md), and 2.2 with barely enough.
    """
    return next((scale for scale in (8, 4, 2) if 2 * min(box[2:]) >= 3 * scale * size), 1)


@dataclass(frozen=True)
class CentreCrop:
    """Shorter side to size / crop, then the centre, as torchvision and transformers evaluate."""

    crop: float = 0.875             # share of the shorter side that is kept
    resize: int | tuple[int, int] | None = None     # in its stead the shorter side in pixels, or a (height, width) whatever the shape was
    resampling: str = "bicubic"     # one of PIL's
    half_even: bool = False         # how an odd margin is halved: torchvision rounds half of it to even

    def resized(self, height: int, width: int, size: int) -> tuple[int, int]:
        """(height, width) of the whole image before the centre is cut out; the shorter side is floor(size / crop)."""
        if isinstance(self.resize, tuple):
            return self.resize
        short = self.resize or max(math.floor(size / self.crop), size)
        if width <= height:
            return max(int(short * height / width), short), short
        return short, max(int(short * width / height), short)

    def middle(self, height: int, width: int, size: int) -> tuple[int, int, int, int]:
        """(top, left, size, size) in the resized image.

        An odd margin is larger below and to the right, as in transformers, whose processors go with exported models, unless half_even.
        """
        if self.half_even:
            return round((height - size) / 2), round((width - size) / 2), size, size
        return (height - size) // 2, (width - size) // 2, size, size
