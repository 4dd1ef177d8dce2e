"""A box of a picture that was decoded small, resized: the box is given in pixels of the whole image, and may cut pixels of the small one.

torch resizes whole pixels alone.  Moving the box to the nearest of them would cost 2.5 of 255 on average over photographs, up to 9; this
costs 0.7.
"""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Weights are multiples of 2^-15 at best: every sum of theirs with bytes is a whole number below 2^24, which float32 holds exactly.
_BITS = 15
_HALF = torch.tensor(0.5)


def resample(pixels: NDArray[np.uint8], box: tuple[int, int, int, int], scale: int, height: int, width: int) -> NDArray[np.uint8]:
    """(h, w, C) at 1 / scale -> (height, width, C): the box (top, left, height, width) by the filter of PIL's BICUBIC, antialiased.

    First along rows, then along columns, each rounded to bytes, with weights in whole numbers: the native decoder's arithmetic
    (native/resize.c), to its last bit.
    """
    top, left, h, w = box
    rows, columns = (slice(low // scale, -(-(low + count) // scale)) for low, count in ((top, h), (left, w)))
    cut = pixels[rows, columns]
    count, _, channels = cut.shape
    across = _pass(cv2.transpose(cut).reshape(cut.shape[1], -1), left / scale - columns.start, w / scale, width)
    turned = cv2.transpose(across.reshape(width, count, channels))
    return _pass(turned.reshape(count, -1), top / scale - rows.start, h / scale, height).reshape(height, width, channels)


def _pass(values: NDArray[Any], offset: float, extent: float, output: int) -> NDArray[np.uint8]:
    """(n, m) bytes -> (output, m): the stretch [offset, offset + extent) of the first dimension resized."""
    start, weights, bits = _weights(len(values), offset, extent, output)
    places = np.minimum(start[:, None] + np.arange(weights.shape[1]), len(values) - 1)      # beyond the end the weights are zero
    summed: Tensor = torch.nn.functional.embedding_bag(
        torch.from_numpy(places), torch.from_numpy(values).float(), mode="sum", per_sample_weights=torch.from_numpy(weights))
    return torch.add(_HALF, summed, alpha=2.0**-bits).clamp_(0, 255).to(torch.uint8).numpy()


def _weights(inputs: int, offset: float, extent: float, output: int) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Of each output its first input, the whole-number weights (output, taps) of that and those after it, and how many of their bits come
    behind the point.  resize.c, line by line: the same operations on doubles in the same order."""
    scale = extent / output
    support, inverse = 2 * max(scale, 1.0), 1 / max(scale, 1.0)
    centre = offset + scale * (np.arange(output) + 0.5)
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), inputs) - start
    taps = np.arange(int(count.max()))
    x = np.abs(((taps + start[:, None]) - centre[:, None] + 0.5) * inverse)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * (taps < count[:, None])
    total = np.zeros(output)
    for tap in taps:                        # in this order
        total += weights[:, tap]
    weights /= total[:, None]
    largest = float(weights.max())
    bits = next((bits for bits in range(_BITS) if int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15), _BITS)
    scaled = weights * (1 << bits)
    return start, np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5)).astype(np.float32), bits
