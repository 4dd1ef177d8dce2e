"""The native code, where it was built: a JPEG decoded, cropped and resized in one call, images augmented in another, without Python's lock.
Else the libraries do it.

The decoder takes only what is well formed to the last bit, and gives the pixels that simplejpeg and torch's resize give, to the last bit.
So it decides nothing: what it does not take, damaged or of a kind it leaves to others, goes to the libraries, which find what is wrong.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]         # top, left, height, width
MARK_WORDS = 3                          # of a mark (entropy.h)

_INTERFACE = 4                          # of module.c's functions; what was built first has none

_module: Any = None
_absent = ""
try:
    _module = importlib.import_module("vitscale.data.native._crop")
except ImportError as error:
    _absent = str(error) if "No module named" not in str(error) else (
        "not built: its installation found no C compiler, no Python.h, or no headers of libjpeg-turbo (jpeglib.h, jpegint.h)")
if _module is not None and getattr(_module, "INTERFACE", 1) != _INTERFACE:
    _module, _absent = None, "built from older sources; build it again: python vitscale/data/native/build.py"


def available() -> bool:
    return _module is not None


def describe() -> str:
    """Which decoder runs, for people."""
    if _module is None:
        return f"simplejpeg and torch's resize; the native one is absent ({_absent})"
    return f"native: {_module.LIBJPEG}, Huffman decoder of its own, resize by {_module.INSTRUCTIONS}"


class NativeCut(NamedTuple):
    """One crop: the box of the image, given in pixels of the whole, is resized to `resized` (height, width), of which the window goes into
    out, contiguous (rows, columns, 3 or 1)."""

    out: NDArray[np.uint8]
    box: Box
    resized: tuple[int, int]
    window: Box


def crop(data: bytes, scale: int, cuts: Sequence[NativeCut], whole: bool, marks: NDArray[np.uint32] | None = None) -> bool:
    """Decode a JPEG at 1 / scale and cut all of that out of it while its rows are decoded.  whole: the coded data is read to its end, so
    that True also says that nothing is wrong with it.

    marks (n, MARK_WORDS), contiguous: restart points, places in the coded data where decoding can begin.  They are written if it is read
    whole; else they are those that the same data gave then, and of what lies above the crops most is not decoded.

    False: not taken; what the cuts are put into, and marks if whole, then hold nothing of use.
    """
    return _module is not None and _module.crop(data, cuts[0].out.shape[2], scale, whole, marks, tuple(cuts)) is None


def augment(
    images: NDArray[np.uint8], flip: NDArray[np.bool_], parts: Sequence[tuple[str, int, int]], rows: NDArray[np.int64],
    parameters: NDArray[np.float64], fill: NDArray[np.uint8], table: NDArray[np.float32], out: NDArray[np.float32],
) -> None:
    """Images (B, H, W, C) of bytes, C 1 or 3: mirrored where flip (B,), then the operations of pixels.py, then through table (C, 256) into
    out (B, C, H, W).  parts, rows (R,), parameters (R, 6): as in augment.Ops.  fill (C,): what affine fills with.  All contiguous.

    For where available().  An image goes through all that is to be done to it before the next one, so that it stays near the processor.
    """
    names = {name: code for code, name in enumerate(_module.OPERATIONS)}
    codes = np.repeat([names[name] for name, _, _ in parts], [high - low for _, low, high in parts]).astype(np.int64)
    by_image = np.argsort(rows, kind="stable")
    first = np.searchsorted(rows[by_image], np.arange(len(images) + 1))
    _module.augment(images, flip, out, *images.shape, first, codes[by_image], np.ascontiguousarray(parameters[by_image]), fill, table)
