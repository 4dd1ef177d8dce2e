"""Everything that is no common JPEG or plain WebP is decoded by Pillow, whose pixels are the oracle of all others.

Its plugin is chosen by what header.py found, not by Pillow's own look, and is given only the bytes that make up the still image.
"""

import importlib
import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitscale.data.bad import BadSample
from vitscale.data.header import Header

_PLUGINS = {"JPEG": "JpegImagePlugin.JpegImageFile", "PNG": "PngImagePlugin.PngImageFile", "WebP": "WebPImagePlugin.WebPImageFile",
            "BMP": "BmpImagePlugin.BmpImageFile", "GIF": "GifImagePlugin.GifImageFile", "TIFF": "TiffImagePlugin.TiffImageFile",
            "AVIF": "AvifImagePlugin.AvifImageFile"}
_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})


def pixels(data: bytes, header: Header, channels: int) -> NDArray[np.uint8]:
    """-> (h, w, 3) RGB or (h, w, 1) grey, of the first frame.  16 bits are cut to their upper 8; what lies under transparency is shown.

    data: what still() gives.  Raises BadSample.
    """
    def taken(image: Any) -> NDArray[Any]:
        if image.mode in _DEEP:
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], channels, axis=2)
        if image.mode in ("I", "F"):
            raise BadSample("format", f"is a {header.format} of 32 bits a sample; 8 and 16 are read")
        return np.array(image.convert("RGB" if channels == 3 else "L"))

    return _loaded(data, header, taken).reshape(header.height, header.width, channels)


def numbers(data: bytes, header: Header) -> NDArray[np.uint8]:
    """-> (h, w): what a PNG of up to 8 bits, grey or with a palette, says of each pixel, its place in the palette.

    data: what still() gives.  Raises BadSample.
    """
    def taken(image: Any) -> NDArray[Any]:
        if image.mode not in ("1", "L", "P"):
            raise BadSample("format", f"is a PNG of mode {image.mode}, not of one number of up to 8 bits a pixel")
        spread = {2: 85, 4: 17}.get(data[24], 1) if image.mode == "L" else 1      # greys of few bits are stretched to 0..255
        return np.array(image).astype(np.uint8) // spread

    return _loaded(data, header, taken)


def _loaded(data: bytes, header: Header, taken: Callable[[Any], NDArray[Any]]) -> NDArray[np.uint8]:
    """What is taken of the first frame once all of it was decoded.  Raises BadSample."""
    opened = _plugin(header.format)
    try:
        with opened(io.BytesIO(data)) as image:
            if image.size != (header.width, header.height):
                raise BadSample("decode", f"states {header.width} x {header.height} pixels, and {image.width} x {image.height} too")
            image.load()
            if header.format == "PNG" and _may_be_short(data, image) and _is_short(data, header):
                raise BadSample("truncated", "a PNG whose coded data ends before its last row")
            return taken(image)
    except (BadSample, MemoryError):
        raise
    except Exception as error:      # of whatever kind: the plugins raise SyntaxError, OSError, ValueError, struct.error, EOFError and more
        text = str(error) or type(error).__name__
        raise BadSample("truncated" if "truncated" in text else "decode", f"Pillow's {header.format}: {text}") from error


def _may_be_short(data: bytes, image: Any) -> bool:
    """Pillow leaves zero what a PNG has no data for, without a word: the last row, or if interlaced anything."""
    return data[28] == 1 or image.crop((0, image.height - 1, image.width, image.height)).getbbox(alpha_only=False) is None


def _is_short(data: bytes, header: Header) -> bool:
    """Whether the coded data of a PNG holds fewer bytes than its rows have (W3C, third edition, sections 7.2 and 8.1)."""
    bits = data[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
    passes = [(0, 0, 1, 1)]
    if data[28]:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]    # top, left, steps
    sides = [(-(-(header.height - top) // down), -(-(header.width - left) // across)) for top, left, down, across in passes]
    wanted = sum(rows * (1 + (columns * bits + 7) // 8) for rows, columns in sides if rows > 0 and columns > 0)
    inflate, at = zlib.decompressobj(), 33
    while at < len(data) and wanted > 0:
        length, kind = struct.unpack_from(">I4s", data, at)
        coded = data[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        while coded and wanted > 0:
            wanted -= len(inflate.decompress(coded, 1 << 20))
            coded = inflate.unconsumed_tail
        at += 12 + length
    return wanted > len(inflate.flush())


@cache
def _plugin(name: str) -> Any:
    module, _, found = _PLUGINS[name].partition(".")
    try:
        return getattr(importlib.import_module(f"PIL.{module}"), found)
    except ImportError as error:
        raise BadSample("format", f"is {name}, which this Pillow cannot read ({error})") from error
