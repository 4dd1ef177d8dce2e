"""From the bytes of an image to the pixels the model sees: decode, crop, resize.  PIL is the numerical oracle."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitscale.data.crop import CentreCrop, RandomCrop, on_grid, reduction
from vitscale.data.image import checked_size, decode_above, decode_checked, reducible
from vitscale.data.orient import orientation, stored_box, swaps, upright


def decode(
    data: bytes, crop: RandomCrop | CentreCrop, size: int, channels: int = 3, draws: Sequence[float] = (), exif: bool = False,
    sound: bool = False,
) -> NDArray[np.uint8]:
    """One image -> (S, S, C) uint8, RGB or grey.  draws: 22 numbers in [0, 1) for a RandomCrop.

    Resized by torch's antialiased bicubic on uint8, the filter of PIL's BICUBIC, in a single pass.  A JPEG whose random crop is at least
    three times as large as the output is decoded at 1/2, 1/4 or 1/8, its box moved onto that grid.  Evaluation never does so, since
    its numbers are compared with others'.  Raises BadSample.

    exif: the box is drawn in the image as its EXIF orientation has it looked at.  It is cut out of the stored pixels, and only the resized
    square is turned: as right, and nothing large is copied.

    sound: these bytes were decoded before and nothing was wrong with them (sound.py).  Then a random crop leaves out the rows below it,
    which takes an eighth less time and gives the same pixels; else they are decoded too, since damage is told only at an image's end.
    """
    height, width = checked_size(data)
    turn = orientation(data) if exif else 1
    seen = (width, height) if swaps(turn) else (height, width)
    if isinstance(crop, RandomCrop):
        box = stored_box(crop.box(*seen, draws), height, width, turn)
        scale = reduction(box, size) if reducible(data) else 1
        top, left, h, w = on_grid(box, scale)
        pixels = decode_above(data, channels, scale, top + h) if sound else decode_checked(data, channels, scale)
        square = resize(pixels[top:top + h, left:left + w], size, size)
    else:
        pixels = decode_checked(data, channels)
        h, w = crop.resized(*seen, size)
        middle = round((h - size) / 2), round((w - size) / 2), size, size
        h, w = (w, h) if swaps(turn) else (h, w)
        top, left, _, _ = stored_box(middle, h, w, turn)
        square = resize(pixels, h, w)[top:top + size, left:left + size]
    return upright(square, turn)


def resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """(h, w, C) -> (height, width, C)"""
    # with the strides of channels-last in every dimension, also that of the one image: else the result is planes, and copying it into a
    # batch takes 0.4 ms
    planes = torch.from_numpy(np.ascontiguousarray(pixels).reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    resized: NDArray[np.uint8] = torch.nn.functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True).numpy()
    return resized[0].transpose(1, 2, 0)
