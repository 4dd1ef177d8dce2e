"""A JPEG's bytes to its pixels, strictly: what a decoder would paint over in silence is an error.  ITU T.81 is the standard cited."""

import re
import struct
from dataclasses import dataclass, field, replace

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vitscale.data import pillow
from vitscale.data.bad import BadSample
from vitscale.data.header import Header, still

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}        # frame headers (table B.1)
_SEQUENTIAL = frozenset({0xC0, 0xC1})                           # Huffman-coded, in one pass: baseline and extended
_BORDER = 1                                                     # rows below one that the interpolation of colours looks at
_SHORTEST = 16                                                  # no table allows a run of fewer zero bytes to be called damage
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")            # inside coded data only FF00 and RST0-7 stand (B.1.1.5)
_PADDED = re.compile(r"Corrupt JPEG data: ([0-9]+) extraneous bytes before marker 0xd9")
_PADDING = 2                                                    # bytes after the last block that some cameras write; nothing is lost


def pixels(data: bytes, channels: int, header: Header, scale: int = 1) -> NDArray[np.uint8]:
    """-> (h, w, 3) RGB or (h, w, 1) grey.  Raises BadSample("decode") for whatever libjpeg warns of, and for zeroed bytes in coded data.

    scale: 1, or 2, 4, 8 for a common kind: the inverse transform gives so much smaller blocks, the coded data is read whole.

    Kinds that simplejpeg does not give as Pillow does are Pillow's, but for four inks and arithmetic coding simplejpeg looks for damage.
    It has no name for unusual samplings, and writes lossless images in full whatever size it is asked for: these it never sees.
    """
    if header.kind != "lossless" and (at := zeroed(data, header)) is not None:
        raise BadSample("decode", f"a JPEG with zeroed bytes at its byte {at}")
    given = still(data, header)
    space = "CMYK" if header.kind == "inks" else "RGB" if channels == 3 else "GRAY"
    if header.kind in ("lossless", "sampling"):
        return pillow.pixels(given, header, channels)
    low = _sides(header, scale)
    try:
        decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(given, space, False, False, *low)
    except ValueError as error:
        padded = _PADDED.search(str(error))
        if not padded or int(padded[1]) > _PADDING:
            raise BadSample("decode", str(error)) from error
        decoded = simplejpeg.decode_jpeg(given, space, False, False, *low, strict=False)
    return decoded if header.kind == "common" else pillow.pixels(given, header, channels)


def pixels_above(data: bytes, channels: int, header: Header, scale: int, bottom: int) -> NDArray[np.uint8]:
    """The rows [0, bottom) of pixels(), the same to the bit, and perhaps some below.

    For an image of a common kind that pixels() has taken: this looks for no damage.  libjpeg-turbo passes over invalid codes, and
    warns mostly when the data does not last just as long as the blocks; but here the copy that is decoded has a frame header which states
    a smaller height, so that no time goes into what lies below, and the rest of the data is one warning, always.
    """
    lowered = min(scale * (bottom + _BORDER), header.height)
    given: bytes | bytearray = data
    if lowered < header.height:
        given = bytearray(data)
        struct.pack_into(">H", given, header.frame + 5, lowered)
        header = replace(header, height=lowered)
    if header.parts:
        given = still(bytes(given), header)
    decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        given, "RGB" if channels == 3 else "GRAY", False, False, *_sides(header, scale), strict=False)
    return decoded


def _sides(header: Header, scale: int) -> tuple[int, int]:
    """What simplejpeg is asked for at least: it takes the least eighths that give this; 0: all."""
    return (-(-header.height // scale), -(-header.width // scale)) if scale > 1 else (0, 0)


@dataclass
class _HuffmanTables:
    """What decides how zero bits decode."""

    sequential: bool = False
    sampling: dict[int, int] = field(default_factory=dict)              # component -> blocks of an interleaved MCU
    first: dict[int, tuple[int, int]] = field(default_factory=dict)     # table (class << 4 | id) -> (bits of its code 00..0, its symbol)


def zeroed(data: bytes, header: Header) -> int | None:
    """Where a run of zero bytes begins that no encoder of pictures can have written, or None.

    In each Huffman table the code of only zeros belongs to the first symbol (C.2).  In an AC table that is a pair (run r, size s).  With
    s > 0 the zero bits after it are the coefficient -(2^s - 1) (F.1.2.2): so zeros decode, without any error, to blocks whose every
    (r + 1)-th coefficient has that one value; the standard luminance table gives 63 times -1.  No picture has such a block: it is noise
    of a single phase, rounded alike in 63 places.  A run long enough to hold a whole one is damage.  With s = 0 (end of block, or
    sixteen zeros) a run of zeros is flat blocks, and nothing can be concluded; the decoder's own warnings remain.
    """
    start = header.scan                                         # what comes before it is often zero
    words = np.frombuffer(data, np.uint64, (len(data) - start) // 8, start)
    if words.all() or data.find(bytes(_SHORTEST), start) < 0:   # a run holds a whole word, and those are looked for several times as fast
        return None
    tables, at = _HuffmanTables(), 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None                                         # lost; the decoder will say so
        marker = data[at + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return None
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        segment = data[at + 4:end]
        if marker == 0xC4:
            _read_huffman(segment, tables.first)
        elif marker in _SOF:
            tables.sequential = marker in _SEQUENTIAL
            for component in range(6, len(segment) - 2, 3):
                tables.sampling[segment[component]] = (segment[component + 1] >> 4) * (segment[component + 1] & 15)
        elif marker == 0xDA:
            if len(segment) < 4 or len(segment) < 4 + 2 * segment[0]:
                return None                                     # a header cut short; the decoder will say so
            found = _SCAN_END.search(data, end)
            stop = found.start() if found else len(data)
            limit = _sequential_limit(segment, tables) if tables.sequential else _progressive_limit(segment, tables)
            if limit and (run := data.find(bytes(limit), end, stop)) >= 0:
                return run
            end = stop
        at = end
    return None


def _read_huffman(segment: bytes, first: dict[int, tuple[int, int]]) -> None:
    """DHT (B.2.4.2): 16 counts of codes by length, then the symbols in the order of their codes."""
    at = 0
    while at + 17 < len(segment):
        counts = segment[at + 1:at + 17]
        length = next((bits for bits, count in enumerate(counts, 1) if count), 0)
        if length:
            first[segment[at]] = length, segment[at + 17]
        at += 17 + sum(counts)


def _sequential_limit(header: bytes, tables: _HuffmanTables) -> int | None:
    """Zero bytes that must hold a whole impossible block of this scan (its header: B.2.3), or None if all that zeros give is legal."""
    whole, flat = 0, 0                                          # bits of the longest such block; of all legal ones in an MCU
    count = header[0]
    for at in range(1, 1 + 2 * count, 2):
        component, choice = header[at], header[at + 1]
        dc, ac = tables.first.get(choice >> 4), tables.first.get(0x10 | (choice & 15))
        if not dc or not ac:
            return None
        start, (length, symbol) = dc[0] + (dc[1] & 15), ac
        run, bits = symbol >> 4, symbol & 15
        if bits:
            whole = max(whole, start + -(-63 // (run + 1)) * (length + bits))
        else:
            blocks = tables.sampling.get(component, 1) if count > 1 else 1
            flat += blocks * (start + length * (1 if run < 15 else 4))
    if not whole:
        return None
    # At worst the run begins just inside one such block, legal ones follow, then a whole one.
    return max((2 * whole + flat + 14) // 8, _SHORTEST)


def _progressive_limit(header: bytes, tables: _HuffmanTables) -> int | None:
    """The same for an AC scan of a progressive image (G.1.2.2, G.1.2.3): zeros give each coefficient that was 0 the value -(2^s - 1) and
    correct none of the others.  A band may be one coefficient wide, so four whole blocks are asked for.  DC scans may be all zero."""
    ac = tables.first.get(0x10 | (header[2] & 15))
    if header[0] != 1 or header[3] == 0 or not ac or not ac[1] & 15:
        return None
    return 4 * 63 * (ac[0] + (ac[1] & 15)) // 8
