"""The bytes of an image to its pixels, strictly.  header.py says what it is; which library may have it is decided here.

| decoder | gets |
|---|---|
| native, or simplejpeg (jpeg.py) | JPEG: baseline and progressive Huffman coding, 8 bits, grey or three colours sampled as usual |
| OpenCV | WebP: one still image without transparency |
| Pillow (pillow.py) | JPEG: four inks, arithmetic coding, lossless, unusual sampling; PNG, BMP, GIF, TIFF, AVIF; any other WebP |
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitscale.data import jpeg, pillow
from vitscale.data.bad import BadSample, only_bad_samples
from vitscale.data.header import Header, read_header, still

MAX_PIXELS = 178_956_970        # twice what Pillow warns about; Pillow's own limit for an error
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


@only_bad_samples
def decode_whole(data: bytes, channels: int = 3) -> NDArray[np.uint8]:
    """Every pixel of one image: (h, w, 3) RGB or (h, w, 1) grey.  Raises BadSample for what is damaged, where its format lets that be seen.

    JPEG strictly (jpeg.py), PNG by its checksums (header.py).  The others have none: what their decoder does not notice passes.
    """
    return decode_checked(data, channels, checked_header(data))


def checked_header(data: bytes) -> Header:
    """read_header() of what may be decoded.  Raises BadSample, "bomb" for what would fill the memory."""
    header = read_header(data)
    if header.height < 1 or header.width < 1:
        raise BadSample("decode", f"{header.width} x {header.height} pixels")
    if header.height * header.width > MAX_PIXELS:
        raise BadSample("bomb", f"{header.width} x {header.height} pixels, more than {MAX_PIXELS}")
    return header


def reducible(header: Header) -> bool:
    """Whether decode_checked() can give it at 1/2, 1/4 and 1/8.  Decoders ignore what they are asked for where a kind has no blocks."""
    return header.kind == "common"


def decode_checked(data: bytes, channels: int, header: Header, scale: int = 1) -> NDArray[np.uint8]:
    """decode_whole() of an image with that checked_header(), at 1 / scale, its sides rounded up.  scale: 1, or 2, 4, 8 if reducible()."""
    if header.format == "JPEG":
        pixels = jpeg.pixels(data, channels, header, scale)
    elif header.kind == "plain":
        pixels = _webp(still(data, header), channels)
    else:
        pixels = pillow.pixels(still(data, header), header, channels)
    return checked_size(pixels, header, channels, scale)


def decode_above(data: bytes, channels: int, header: Header, scale: int, bottom: int) -> NDArray[np.uint8]:
    """At least the rows [0, bottom) of decode_checked(), of an image that decode_checked() has once taken."""
    return jpeg.pixels_above(data, channels, header, scale, bottom) if reducible(header) else decode_checked(data, channels, header, scale)


def checked_size(pixels: NDArray[np.uint8], header: Header, channels: int, scale: int) -> NDArray[np.uint8]:
    """The same; what a decoder gave in another size than its header says is no image."""
    wanted = -(-header.height // scale), -(-header.width // scale), channels
    if pixels.shape != wanted:
        raise BadSample("decode", f"its decoder gave {pixels.shape} where its header says {wanted}")
    return pixels


@only_bad_samples
def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header.  Raises as read_header()."""
    header = read_header(data)
    return header.height, header.width


def _webp(data: bytes, channels: int) -> NDArray[np.uint8]:
    """A still image without transparency: OpenCV takes half the time of Pillow, and leaves Python's lock."""
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), _COLOUR)
    except cv2.error as error:
        raise BadSample("decode", str(error)) from error
    if pixels is None:
        raise BadSample("decode", "a damaged WebP")
    if channels == 3:
        return np.ascontiguousarray(pixels[:, :, ::-1])
    luma = pixels @ np.array([7471, 38470, 19595], np.uint32)       # Pillow's, and so ITU-R 601-2's; the colours come as BGR
    return ((luma + 0x8000) >> 16).astype(np.uint8)[:, :, None]
