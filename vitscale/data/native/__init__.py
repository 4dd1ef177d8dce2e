"""The native decoder of JPEGs, where it was built: decode, crop and resize in one call, without Python's lock.  Else the libraries do it.

It takes only what is well formed to the last bit, and gives the pixels that simplejpeg and torch's resize give, to the last bit.  So it
decides nothing: what it does not take, damaged or of a kind it leaves to others, goes to the libraries, which find what is wrong.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]         # top, left, height, width
MARK_WORDS = 3                          # of a mark (entropy.h)

_INTERFACE = 2                          # of crop() in module.c: what was built before boxes were in pixels of the whole image has none

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


def crop(
    data: bytes, out: NDArray[np.uint8], scale: int, box: Box, resized: tuple[int, int], window: Box, whole: bool,
    marks: NDArray[np.uint32] | None = None,
) -> bool:
    """Decode a JPEG at 1 / scale, resize the box of it, given in pixels of the whole image, to `resized` (height, width), and write the
    window of that into out, contiguous (rows, columns, 3 or 1).  whole: the coded data is read to its end, so that True also says that
    nothing is wrong with it.

    marks (n, MARK_WORDS), contiguous: ways into the coded data.  They are written if it is read whole; else they are those that the same
    data gave then, and of what lies above the crop most is not decoded.

    False: not taken; out, and marks if whole, then hold nothing of use.
    """
    return _module is not None and _module.crop(data, out, out.shape[2], scale, box, resized, window, whole, marks) is None
