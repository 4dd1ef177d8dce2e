"""From the bytes of an image to the pixels the model sees: decode, crop, resize.  PIL is the numerical oracle."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vitscale.data.bad import BadSample
from vitscale.data.crop import CentreCrop, RandomCrop

MAX_PIXELS = 178_956_970        # twice what Pillow warns about; Pillow's own limit for an error
# EXIF orientation is ignored, as in torchvision's and timm's training; 16 bits are scaled to 8, alpha is dropped, palettes are looked up
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_GREY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}        # JPEG frame headers (ITU T.81, table B.1)


def decode(
    data: bytes, crop: RandomCrop | CentreCrop, size: int, channels: int = 3, draws: Sequence[float] = (),
) -> NDArray[np.uint8]:
    """One image -> (S, S, C) uint8, RGB or grey.  draws: 22 numbers in [0, 1) for a RandomCrop.

    Resized by torch's antialiased bicubic on uint8, the filter of PIL's BICUBIC, in a single pass.  Raises BadSample.
    """
    height, width = image_size(data)
    if height < 1 or width < 1:
        raise BadSample("decode", f"{width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise BadSample("bomb", f"{width} x {height} pixels, more than {MAX_PIXELS}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOUR if channels == 3 else _GREY)
    except cv2.error as error:
        raise BadSample("decode", str(error)) from error
    if pixels is None:
        raise BadSample("decode", "no decoder understands it")
    height, width = pixels.shape[:2]
    if isinstance(crop, RandomCrop):
        top, left, h, w = crop.box(height, width, draws)
        square = _resize(pixels[top:top + h, left:left + w], size, size)
    else:
        h, w = crop.resized(height, width, size)
        top, left = round((h - size) / 2), round((w - size) / 2)
        square = _resize(pixels, h, w)[top:top + size, left:left + size]
    return square[:, :, ::-1] if channels == 3 else square         # OpenCV decodes to BGR


def _resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """(h, w) or (h, w, 3) -> (height, width, 1 or 3)"""
    planes = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header, and a look at the end.

    Raises BadSample: "format" for what is no JPEG, PNG, WebP or BMP, "truncated" for one without its end, "decode" for a bad header.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
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


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """ITU T.81, annex B: markers up to the frame header.  The end marker cannot occur inside coded data."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise BadSample("decode", "a JPEG marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:                                      # fill
            at += 1
        elif marker in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 5)
            if data.rfind(b"\xff\xd9") < at:
                raise BadSample("truncated", "a JPEG without its end")
            return height, width
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:          # stand alone
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


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
