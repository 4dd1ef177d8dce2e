"""Pictures in formats that shards do not hold: known by their first bytes, and turned into PNG when they are packed."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitscale.data.bad import BadSample
from vitscale.data.image import MAX_PIXELS

HEAD = 32               # bytes that kind_of() looks at
NATIVE = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "BMP": "bmp"}       # what a shard may hold, and the member's extension
CONVERTED = ("TIFF", "GIF", "AVIF")                                        # what pack writes as PNG
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"heim": "HEIC", b"heis": "HEIC",
           b"mif1": "HEIC", b"msf1": "HEIC"}       # ISO/IEC 14496-12, the brand of an `ftyp` box
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"BM", "BMP"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"8BPS", "Photoshop"),
    (b"\0\0\x01\0", "icon"), (b"v/1\x01", "OpenEXR"), (b"#?RADIANCE", "Radiance HDR"), (b"P5\n", "PGM"), (b"P6\n", "PPM"),
)


def kind_of(head: bytes) -> str | None:
    """The name of a picture's format from its first HEAD bytes; None for what is no picture."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def to_png(data: bytes, kind: str) -> bytes:
    """The first picture of a TIFF, GIF or AVIF file as PNG: colour or grey, 8 bits.

    16 bits are scaled and alpha is dropped, as the decoder does with a PNG.  Raises BadSample, "format" for pixels that have no such form.
    """
    if kind not in CONVERTED:
        raise BadSample("format", f"is {kind}, which is not read; convert it to JPEG or PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # of bombs, which are counted below, and of odd but harmless tags
            with Image.open(io.BytesIO(data)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise BadSample("bomb", f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
                picture.load()
                plain = _plain(picture, kind)
    except Image.DecompressionBombError as error:
        raise BadSample("bomb", str(error)) from None
    except UnidentifiedImageError:
        raise BadSample("format", f"a {kind} of a kind that is not read here; convert it to JPEG or PNG") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise BadSample("decode", f"a {kind} that cannot be decoded: {error or type(error).__name__}") from None
    written = io.BytesIO()
    plain.save(written, "PNG")
    return written.getvalue()


def _plain(picture: Image.Image, kind: str) -> Image.Image:
    if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("L")
    if picture.mode in ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB"):
        return picture.convert("RGB")
    raise BadSample("format", f"a {kind} with pixels of kind {picture.mode}; convert it to 8 or 16 bits of grey or colour")
