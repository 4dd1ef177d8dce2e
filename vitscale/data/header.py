"""What an image's bytes say it is, before any library sees them: format, kind, size, and which of the bytes a decoder is to be given.

Decoders are written for images as their own encoders make them, and some fall on what is legal but rare.  So each gets only the kinds for
which it is known to be right (image.py), without what changes no pixel: metadata, and the later frames of an animation.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from vitscale.data.bad import BadSample

FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF"
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC",
           b"mif1": "HEIF", b"msf1": "HEIF", b"crx ": "CR3"}
_OTHERS = {b"\x00\x00\x00\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\xff\x0a": "JPEG XL",
           b"\x00\x00\x00\x0cJXL ": "JPEG XL",
           b"8BPS": "PSD", b"<svg": "SVG", b"<?xml": "XML", b"<!DOC": "HTML", b"<html": "HTML", b"%PDF": "PDF", b"P6": "PPM", b"P5": "PGM"}

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}        # JPEG's frame headers (ITU T.81, table B.1)
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
# sampling factors of brightness that libjpeg-turbo's simple interface, and so simplejpeg, has names for; those of colour are 1 x 1
_SAMPLINGS = frozenset({0x11, 0x21, 0x22, 0x12, 0x41})
_MOST_SCANS = 1000              # of a progressive JPEG; writers make ten, and each costs a pass over all blocks
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}     # of each colour type
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


@dataclass(frozen=True, slots=True)
class Header:
    """Of one image."""

    format: str                             # one of FORMATS
    height: int
    width: int
    kind: str = ""                          # JPEG: "common", "inks", "arithmetic", "lossless" or "sampling"; WebP: "plain" or "layers"
    parts: tuple[tuple[int, int], ...] = () # stretches of the bytes that make up the image; none: all of them
    frame: int = 0                          # JPEG: where its frame header stands
    scan: int = 0                           # JPEG: where the header of its first scan stands


def read_header(data: bytes) -> Header:
    """Look at the header, and at the end where a format has one.

    Raises BadSample: "format" for what is of no format or kind that can be decoded, by its name; "truncated" for one without its end;
    "decode" for a header that cannot be.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:2] == b"BM":
            return _bmp(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            width, height = struct.unpack_from("<HH", data, 6)
            return Header("GIF", height, width)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(data)
        if data[4:8] == b"ftyp" and _BRANDS.get(data[8:12], "HEIF") in ("AVIF", "HEIF") and _is_avif(data):
            return _avif(data)
    except (struct.error, IndexError) as error:
        raise BadSample("truncated", "ends inside its header") from error
    raise BadSample("format", _name(data))


def _name(data: bytes) -> str:
    if not data:
        return "is empty"
    other = next((name for start, name in _OTHERS.items() if data.startswith(start)), "")
    if data[4:8] == b"ftyp":
        other = _BRANDS.get(data[8:12], "ISO media")
    return f"is {other}, no {FORMATS}" if other else f"is no {FORMATS}"


# JPEG (ITU T.81)

def _jpeg(data: bytes) -> Header:
    """Up to the first scan (annex B); the end marker cannot occur inside coded data.  What a segment for applications says changes no
    pixel, but for JFIF's and Adobe's, which name the colours."""
    at, frame, kept, parts = 2, 0, 0, []
    while True:
        if data[at] != 0xFF:
            raise BadSample("decode", "a JPEG marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:                                      # fill
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:            # stand alone
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        if length < 2:
            raise BadSample("decode", "a JPEG segment without a length")
        end = at + 2 + length
        if marker in _SOF:
            if frame:
                raise BadSample("decode", "a JPEG of two frames")
            frame = at
            kind = _jpeg_kind(data, at, length)
        elif marker == 0xDE:
            raise BadSample("format", "is a hierarchical JPEG, which no decoder here reads")
        elif marker == 0xDB and length == 67 and b"\0" in data[at + 5:at + 69]:    # B.2.4.1: from 1 to 255; libjpeg does not look
            raise BadSample("decode", "a JPEG whose quantisation table holds a zero")
        elif marker == 0xDA:
            break
        elif marker == 0xFE or (0xE0 <= marker <= 0xEF and not _names_colours(data, at, marker, length)):
            parts.append((kept, at))
            kept = end
        at = end
    if not frame:
        raise BadSample("decode", "a JPEG whose scan comes before its frame header")
    if data.rfind(b"\xff\xd9") < frame:
        raise BadSample("truncated", "a JPEG without its end")
    if data[frame + 1] in (0xC2, 0xCA) and data.count(b"\xff\xda", at) > _MOST_SCANS:
        raise BadSample("decode", f"a progressive JPEG of more than {_MOST_SCANS} scans")
    height, width = struct.unpack_from(">HH", data, frame + 5)
    if height == 0:
        raise BadSample("format", "is a JPEG that states its height only behind its scan (DNL), which no decoder here reads")
    return Header("JPEG", height, width, kind, (*parts, (kept, len(data))) if parts else (), frame, at)


def _names_colours(data: bytes, at: int, marker: int, length: int) -> bool:
    return (marker == 0xE0 and length >= 16 and data[at + 4:at + 9] == b"JFIF\0") or (
        marker == 0xEE and length >= 14 and data[at + 4:at + 9] == b"Adobe")


def _jpeg_kind(data: bytes, at: int, length: int) -> str:
    """Of the frame header at that place (B.2.2).  Raises BadSample("format") for one that no decoder here reads, by its name."""
    process, bits, components = data[at + 1], data[at + 4], data[at + 9]
    lossless = "lossless " if process in (0xC3, 0xC7, 0xCB, 0xCF) else ""
    if process in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF):
        raise BadSample("format", f"is a {lossless}hierarchical JPEG, which no decoder here reads")
    if process == 0xCB:
        raise BadSample("format", "is a lossless arithmetic-coded JPEG, which no decoder here reads")
    if bits != 8:
        raise BadSample("format", f"is a {lossless}JPEG of {bits} bits a sample; only 8 are read")
    if components not in ((1, 3) if lossless else (1, 3, 4)):
        raise BadSample("format", f"is a {lossless}JPEG of {components} components, which no decoder here reads")
    if length != 8 + 3 * components:
        raise BadSample("decode", "a JPEG whose frame header has a wrong length")
    samplings = [data[at + 11 + 3 * number] for number in range(components)]
    if not all(1 <= one >> 4 <= 4 and 1 <= one & 15 <= 4 for one in samplings):
        raise BadSample("decode", "a JPEG whose sampling factors are not from 1 to 4")
    if lossless:
        return "lossless"
    if components == 4:
        return "inks"
    if components == 3 and (samplings[0] not in _SAMPLINGS or samplings[1:] != [0x11, 0x11]):
        return "sampling"
    return "common" if process in _HUFFMAN else "arithmetic"


# PNG (W3C, third edition)

def _png(data: bytes) -> Header:
    """Section 5: chunks with checksums, up to IEND.  Of an animation (section 11.3.6) the still image remains."""
    if data[8:16] != b"\0\0\0\rIHDR":
        raise BadSample("decode", "a PNG without its header")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    at, parts, state = 8, [(0, 8)], 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise BadSample("truncated", f"a PNG cut inside its chunk {kind!r}")
        if zlib.crc32(memoryview(data)[at + 4:end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BadSample("decode", f"a PNG whose chunk {kind!r} has a wrong checksum")
        if (kind == b"IDAT" and state == 2) or (kind == b"IHDR" and at > 8):
            raise BadSample("decode", f"a PNG whose chunk {kind!r} stands where none may")
        state = 1 if kind == b"IDAT" else 2 if state else 0     # before, inside and behind the coded data
        if kind in _PNG_KEPT:
            if parts[-1][1] == at:
                parts[-1] = parts[-1][0], end
            else:
                parts.append((at, end))
        if kind == b"IEND":
            break
        at = end
    if not state:
        raise BadSample("decode", "a PNG without pixels")
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise BadSample("decode", f"a PNG of colour type {colour}, {depth} bits, methods {compression}, {filtering}, {interlace}; "
                                  "there is none")
    return Header("PNG", height, width, parts=tuple(parts))


# WebP (RFC 9649)

def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk of a RIFF file that is whole; the end is even."""
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        stop = at + 8 + length + (length & 1)
        if stop > end + (length & 1):
            raise BadSample("truncated", f"a WebP cut inside its chunk {kind!r}")
        yield kind, at, min(stop, end)
        at = stop


def _webp(data: bytes) -> Header:
    """Section 2.  A plain image is kept without what else lies in the file; of an animation its first frame."""
    end = struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise BadSample("truncated", "a WebP without its end")
    kind = data[12:16]
    if kind in (b"VP8 ", b"VP8L"):
        _, start, stop = next(_chunks(data, 12, end), (kind, 12, 12))
        height, width = _webp_frame(data, kind, start)
        return Header("WebP", height, width, _webp_kind(data, kind, start, stop), ((0, 12), (start, stop)))
    if kind != b"VP8X":
        raise BadSample("decode", f"a WebP of unknown kind {kind!r}")
    height, width = (int.from_bytes(data[at:at + 3], "little") + 1 for at in (27, 24))
    kept, alpha = [], False
    for kind, start, stop in _chunks(data, 12, end):
        if kind in (b"VP8X", b"ANIM", b"ALPH"):
            kept.append((start, stop))
            alpha = alpha or kind == b"ALPH"
        elif kind == b"ANMF":
            if not data[20] & 2:
                raise BadSample("decode", "a WebP that is animated and says it is not")
            return Header("WebP", height, width, "layers", ((0, 12), *kept, (start, stop)))
        elif kind in (b"VP8 ", b"VP8L"):
            if _webp_frame(data, kind, start) != (height, width):
                raise BadSample("decode", "a WebP that states two sizes")
            if not alpha and (found := _webp_kind(data, kind, start, stop)) == "plain":
                return Header("WebP", height, width, found, ((0, 12), (start, stop)))
            return Header("WebP", height, width, "layers", ((0, 12), *kept, (start, stop)))
    raise BadSample("truncated", "a WebP without an image")


def _webp_frame(data: bytes, kind: bytes, at: int) -> tuple[int, int]:
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, at + 9)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, at + 14)
    return height & 0x3FFF, width & 0x3FFF


def _webp_kind(data: bytes, kind: bytes, start: int, stop: int) -> str:
    """OpenCV takes no file of fewer than 32 bytes, as a lossless image of one colour may be."""
    return "layers" if stop - start < 64 or (kind == b"VP8L" and data[start + 12] & 0x10) else "plain"


# The others

def _bmp(data: bytes) -> Header:
    """BITMAPCOREHEADER of OS/2 1.x has 12 bytes and sides of 16 bits, all others have 32 bits."""
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", height, width)
    width, height = struct.unpack_from("<ii", data, 18)
    return Header("BMP", abs(height), width)


def _tiff(data: bytes) -> Header:
    """The first directory (TIFF 6.0, section 2): tags 256 and 257, of 16 or 32 bits."""
    order = "<" if data[:1] == b"I" else ">"
    at = struct.unpack_from(order + "I", data, 4)[0]
    found = {}
    for entry in range(struct.unpack_from(order + "H", data, at)[0]):
        tag, kind, _ = struct.unpack_from(order + "HHI", data, at + 2 + 12 * entry)
        if tag in (256, 257) and kind in (3, 4):
            found[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 10 + 12 * entry)[0]
    if len(found) < 2:
        raise BadSample("decode", "a TIFF without a size")
    return Header("TIFF", found[257], found[256])


def _is_avif(data: bytes) -> bool:
    return any(b"avif" in data[at:at + 4] or b"avis" in data[at:at + 4] for at in range(8, min(struct.unpack_from(">I", data)[0], 256), 4))


def _avif(data: bytes) -> Header:
    """The largest of its images' sizes (ISO/IEC 23008-12, 6.5.3): parts of a grid are smaller."""
    sizes, at = [], data.find(b"ispe")
    while at >= 0:
        sizes.append(struct.unpack_from(">II", data, at + 8))
        at = data.find(b"ispe", at + 4) if len(sizes) < 64 else -1
    if not sizes:
        raise BadSample("decode", "an AVIF without a size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header("AVIF", height, width)


def still(data: bytes, header: Header) -> bytes:
    """The parts of an image that its decoder is to be given, as a file of their own."""
    if not header.parts:
        return data
    joined = b"".join([data[start:end] for start, end in header.parts])
    if header.format != "WebP":
        return joined
    size = struct.pack("<I", len(joined) - 8)
    if joined[12:16] == b"VP8X":        # it no longer has what bits 2, 3 and 5 announce
        return joined[:4] + size + joined[8:20] + bytes([joined[20] & ~0x2C]) + joined[21:]
    return joined[:4] + size + joined[8:]
