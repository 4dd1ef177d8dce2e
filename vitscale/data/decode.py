"""From the bytes of an image to the pixels the model sees: decode, crop, resize.  PIL is the numerical oracle."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitscale.data.crop import CentreCrop, RandomCrop
from vitscale.data.image import decode_whole


def decode(
    data: bytes, crop: RandomCrop | CentreCrop, size: int, channels: int = 3, draws: Sequence[float] = (),
) -> NDArray[np.uint8]:
    """One image -> (S, S, C) uint8, RGB or grey.  draws: 22 numbers in [0, 1) for a RandomCrop.

    Resized by torch's antialiased bicubic on uint8, the filter of PIL's BICUBIC, in a single pass.  Raises BadSample.
    """
    pixels = decode_whole(data, channels)
    height, width = pixels.shape[:2]
    if isinstance(crop, RandomCrop):
        top, left, h, w = crop.box(height, width, draws)
        square = resize(pixels[top:top + h, left:left + w], size, size)
    else:
        h, w = crop.resized(height, width, size)
        top, left = round((h - size) / 2), round((w - size) / 2)
        square = resize(pixels, h, w)[top:top + size, left:left + size]
    return square


def resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """(h, w, C) -> (height, width, C)"""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
