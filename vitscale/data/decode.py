"""From the bytes of an image to the pixels the model sees: decode, crop, resize.  PIL is the numerical oracle."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitscale.data.crop import CentreCrop, RandomCrop, on_grid, reduction
from vitscale.data.image import checked_size, decode_checked, reducible


def decode(
    data: bytes, crop: RandomCrop | CentreCrop, size: int, channels: int = 3, draws: Sequence[float] = (),
) -> NDArray[np.uint8]:
    """One image -> (S, S, C) uint8, RGB or grey.  draws: 22 numbers in [0, 1) for a RandomCrop.

    Resized by torch's antialiased bicubic on uint8, the filter of PIL's BICUBIC, in a single pass.  A JPEG whose random crop is at least
    three times as large as the output is decoded at 1/2, 1/4 or 1/8, its box moved onto that grid.  Evaluation never does so, since
    its numbers are compared with others'.  Raises BadSample.
    """
    height, width = checked_size(data)
    if isinstance(crop, RandomCrop):
        box = crop.box(height, width, draws)
        scale = reduction(box, size) if reducible(data) else 1
        top, left, h, w = on_grid(box, scale)
        square = resize(decode_checked(data, channels, scale)[top:top + h, left:left + w], size, size)
    else:
        pixels = decode_checked(data, channels)
        h, w = crop.resized(height, width, size)
        top, left = round((h - size) / 2), round((w - size) / 2)
        square = resize(pixels, h, w)[top:top + size, left:left + size]
    return square


def resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """(h, w, C) -> (height, width, C)"""
    # said to be channels-last, which strides alone do not tell: else the result is planes, and copying it into a batch takes 0.4 ms
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
