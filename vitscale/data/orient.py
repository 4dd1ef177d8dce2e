"""Which way up an image is by its EXIF orientation, and turning it so.  Exif 2.32 (CIPA DC-008), section 4.6.4: tag 0x0112.

What a viewer shows of the stored rows and columns: 1 as they are; 2 mirrored; 3 turned by half; 4 flipped; 5 transposed; 6 turned
clockwise; 7 transposed about the other diagonal; 8 turned anticlockwise.  Each is flips of the stored image, then perhaps a transposition.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ORIENTATION, _SHORT = 0x0112, 3
_ROWS_REVERSED, _COLUMNS_REVERSED = frozenset({3, 4, 6, 7}), frozenset({2, 3, 7, 8})

Box = tuple[int, int, int, int]     # top, left, height, width


def orientation(data: bytes) -> int:
    """1 to 8, of a JPEG, PNG or WebP; 1 where none is given, or where it cannot be understood, since the pixels are whole all the same."""
    try:
        if data[:2] == b"\xff\xd8":
            exif = _jpeg_exif(data)
        elif data[:4] == b"\x89PNG":
            exif = _chunk(data, 8, b"eXIf", ">I4s", kind_first=False)
        elif data[:4] == b"RIFF":
            exif = _chunk(data, 12, b"EXIF", "<4sI", kind_first=True)
        else:
            exif = b""
        return _tag(exif.removeprefix(b"Exif\0\0")) if exif else 1
    except (struct.error, IndexError):
        return 1


def swaps(turn: int) -> bool:
    """Whether the upright image is as wide as the stored one is high."""
    return turn >= 5


def stored_box(box: Box, height: int, width: int, turn: int) -> Box:
    """Where a box of the upright image lies in the stored one, which has (height, width) pixels."""
    top, left, h, w = box
    if swaps(turn):
        top, left, h, w = left, top, w, h
    if turn in _ROWS_REVERSED:
        top = height - top - h
    if turn in _COLUMNS_REVERSED:
        left = width - left - w
    return top, left, h, w


def upright(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    """(h, w, C) as stored -> as it is to be looked at, a view: (h, w, C), or (w, h, C) if swaps()."""
    if turn in _ROWS_REVERSED:
        pixels = pixels[::-1]
    if turn in _COLUMNS_REVERSED:
        pixels = pixels[:, ::-1]
    return np.swapaxes(pixels, 0, 1) if swaps(turn) else pixels


def _jpeg_exif(data: bytes) -> bytes:
    """The first APP1 segment that is EXIF; it stands before the first scan."""
    at = 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        marker = data[at + 1]
        if marker == 0xFF:                                      # fill
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:          # stand alone
            at += 2
        else:
            end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
            if marker == 0xE1 and data[at + 4:at + 10] == b"Exif\0\0":
                return data[at + 4:end]
            at = end
    return b""


def _chunk(data: bytes, at: int, wanted: bytes, header: str, kind_first: bool) -> bytes:
    """The first chunk of that kind: of a PNG (length, kind, body, checksum), or of a RIFF file (kind, length, body, even)."""
    while at + 8 <= len(data):
        first, second = struct.unpack_from(header, data, at)
        kind, length = (first, second) if kind_first else (second, first)
        if kind == wanted:
            return data[at + 8:at + 8 + length]
        at += 8 + length + (length & 1 if kind_first else 4)
    return b""


def _tag(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF header (section 4.5.2)."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    at = struct.unpack_from(order + "I", tiff, 4)[0]
    for entry in range(struct.unpack_from(order + "H", tiff, at)[0]):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * entry)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1
