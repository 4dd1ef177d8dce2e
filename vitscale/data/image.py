"""The bytes of an image to its pixels, strictly; its size from its header.  JPEG, PNG, WebP and BMP."""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitscale.data import jpeg
from vitscale.data.bad import BadSample

MAX_PIXELS = 178_956_970        # twice what Pillow warns about; Pillow's own limit for an error
# EXIF orientation is not applied here (decode.py does, if asked); 16 bits are scaled to 8, alpha is dropped, palettes are looked up
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION


def decode_whole(data: bytes, channels: int = 3) -> NDArray[np.uint8]:
    """Every pixel of one image: (h, w, 3) RGB or (h, w, 1) grey.  Raises BadSample for what is damaged, where its format lets that be seen.

    JPEG strictly (jpeg.py), PNG by its checksums (image_size).  A WebP or BMP has none: only its container is checked.
    """
    checked_size(data)
    return decode_checked(data, channels)


def checked_size(data: bytes) -> tuple[int, int]:
    """image_size() of what may be decoded.  Raises BadSample, "bomb" for what would fill the memory."""
    height, width = image_size(data)
    if height < 1 or width < 1:
        raise BadSample("decode", f"{width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise BadSample("bomb", f"{width} x {height} pixels, more than {MAX_PIXELS}")
    return height, width


def reducible(data: bytes) -> bool:
    """Whether decode_checked() can give it at 1/2, 1/4 and 1/8."""
    return data[:2] == b"\xff\xd8" and not jpeg.has_four_inks(data)


def decode_checked(data: bytes, channels: int, scale: int = 1) -> NDArray[np.uint8]:
    """decode_whole() of an image whose checked_size() is known, at 1 / scale, its sides rounded up.  scale: 1, or 2, 4, 8 if reducible."""
    if data[:2] == b"\xff\xd8":
        return jpeg.pixels(data, channels, scale)
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOUR if channels == 3 else _GREY)
    except cv2.error as error:
        raise BadSample("decode", str(error)) from error
    if pixels is None:
        raise BadSample("decode", "no decoder understands it")
    return np.ascontiguousarray(pixels[:, :, ::-1]) if channels == 3 else pixels[:, :, None]       # OpenCV decodes to BGR


def decode_above(data: bytes, channels: int, scale: int, bottom: int) -> NDArray[np.uint8]:
    """At least the rows [0, bottom) of decode_checked(), of an image that decode_checked() has once taken."""
    return jpeg.pixels_above(data, channels, scale, bottom) if reducible(data) else decode_checked(data, channels, scale)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header, and a look at the end.

    Raises BadSample: "format" for what is no JPEG, PNG, WebP or BMP, "truncated" for one without its end, "decode" for a bad header.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return jpeg.size(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data[:2] == b"BM":
            width, height = struct.unpack_from("<ii", data, 18)
            return abs(height), width
    except (struct.error, IndexError) as error:
        raise BadSample("truncated", "ends inside its header") from error
    raise BadSample("format", "is no JPEG, PNG, WebP or BMP" if data else "is empty")


def _png_size(data: bytes) -> tuple[int, int]:
    """PNG specification (W3C, third edition), section 5: chunks with checksums, up to IEND."""
    if data[12:16] != b"IHDR":
        raise BadSample("decode", "a PNG without its header")
    width, height = struct.unpack_from(">II", data, 16)
    at = 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise BadSample("truncated", f"a PNG cut inside its chunk {kind!r}")
        if zlib.crc32(data[at + 4:end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BadSample("decode", f"a PNG whose chunk {kind!r} has a wrong checksum")
        if kind == b"IEND":
            return height, width
        at = end


def _webp_size(data: bytes) -> tuple[int, int]:
    """WebP container (RFC 9649, section 2)."""
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise BadSample("truncated", "a WebP without its end")
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = int.from_bytes(data[24:27], "little"), int.from_bytes(data[27:30], "little")
        return height + 1, width + 1
    raise BadSample("decode", f"a WebP of unknown kind {kind!r}")
