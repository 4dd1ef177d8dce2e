"""From the bytes of an image to the pixels the model sees: decode, crop, resize.  PIL is the numerical oracle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vitscale.data import jpeg, native
from vitscale.data.bad import only_bad_samples
from vitscale.data.crop import CentreCrop, RandomCrop, reduction
from vitscale.data.image import checked_header, decode_above, decode_checked, reducible
from vitscale.data.orient import orientation, stored_box, swaps, upright
from vitscale.data.resample import resample


@dataclass(frozen=True)
class Cut:
    """One view of an image: what is taken of it, at which size, and where it is put."""

    crop: RandomCrop | CentreCrop
    size: int
    draws: Sequence[float]          # 22 numbers in [0, 1) for a RandomCrop
    out: NDArray[np.uint8]          # (S, S, C), contiguous


@dataclass(frozen=True)
class _Place:
    """Where a view lies in the pixels as they are stored."""

    box: native.Box                 # what of the image is resized
    resized: tuple[int, int]        # to which height and width
    window: native.Box              # the part of that which is taken
    reduction: int                  # the image may be decoded so much smaller before
    resampling: str = "bicubic"


def _place(cut: Cut, height: int, width: int, turn: int) -> _Place:
    """In an image of that size as stored, which is turned before it is looked at."""
    seen, crop, size = (width, height) if swaps(turn) else (height, width), cut.crop, cut.size
    if isinstance(crop, RandomCrop):
        box = stored_box(crop.box(*seen, cut.draws), height, width, turn)
        return _Place(box, (size, size), (0, 0, size, size), reduction(box, size))
    h, w = crop.resized(*seen, size)
    resized = (w, h) if swaps(turn) else (h, w)
    return _Place((0, 0, height, width), resized, stored_box(crop.middle(h, w, size), *resized, turn), 1, crop.resampling)


@only_bad_samples
def decode_views(data: bytes, cuts: Sequence[Cut], channels: int = 3, exif: bool = False, sound: bool = False,
                 marks: NDArray[np.uint32] | None = None) -> None:
    """Every view of one image, which is decoded once for all of them: as large as the one that wants most of it.

    Resized by an antialiased bicubic on uint8, the filter of PIL's BICUBIC, in a single pass.  A JPEG whose random crops are at least
    three times as large as the output is decoded at 1/2, 1/4 or 1/8, and the boxes, which may cut pixels of that, resized from there.
    Evaluation never does so, since its numbers are compared with others'.  Raises BadSample; then what they are put into holds nothing of
    use.

    exif: a box is drawn in the image as its EXIF orientation has it looked at.  It is cut out of the stored pixels, and only the resized
    square is turned: as right, and nothing large is copied.

    sound: these bytes were decoded before and nothing was wrong with them (decoded_before.py).  Then what lies below the crops is left
    out, which takes less time and gives the same pixels; else it is read too, since damage is told only at an image's end.

    marks: restart points of these bytes (decoded_before.py); written unless sound, read if sound, by which most of what lies above the
    crops is left out too.

    A JPEG is done by the native decoder where that was built and takes it; else by simplejpeg and torch, to the same pixels.
    """
    header, turn = checked_header(data), orientation(data) if exif else 1
    places = [_place(cut, header.height, header.width, turn) for cut in cuts]
    reduces = reducible(header)
    scale = min(place.reduction for place in places) if reduces else 1
    bicubic = all(place.resampling == "bicubic" for place in places)
    if reduces and bicubic and native.available() and (sound or jpeg.zeroed(data, header) is None):
        squares = [cut.out if turn == 1 else np.empty_like(cut.out) for cut in cuts]
        wanted = [native.NativeCut(square, place.box, place.resized, place.window) for square, place in zip(squares, places, strict=True)]
        if native.crop(data, scale, wanted, whole=not sound, marks=marks):
            if turn != 1:
                for cut, square in zip(cuts, squares, strict=True):
                    cut.out[:] = upright(square, turn)
            return
    if marks is not None and not sound:
        marks[:] = 0
    bottom = -(-max(place.box[0] + place.box[2] for place in places) // scale)
    pixels = decode_above(data, channels, header, scale, bottom) if sound else decode_checked(data, channels, header, scale)
    for cut, place in zip(cuts, places, strict=True):
        top, left, h, w = place.box
        whole = resample(pixels, place.box, scale, *place.resized) if scale > 1 else \
            resize(pixels[top:top + h, left:left + w], *place.resized, place.resampling)
        row, column, rows, columns = place.window
        cut.out[:] = upright(whole[row:row + rows, column:column + columns], turn)


@only_bad_samples
def upright_size(data: bytes, exif: bool) -> tuple[int, int]:
    """(height, width) of an image as decode() sees it.  Raises BadSample."""
    header = checked_header(data)
    return (header.width, header.height) if exif and swaps(orientation(data)) else (header.height, header.width)


def decode(
    data: bytes, crop: RandomCrop | CentreCrop, size: int, channels: int = 3, draws: Sequence[float] = (), exif: bool = False,
    sound: bool = False, out: NDArray[np.uint8] | None = None, marks: NDArray[np.uint32] | None = None,
) -> NDArray[np.uint8]:
    """One view of an image -> (S, S, C) uint8, RGB or grey: into `out`, contiguous, if it is given.  draws: 22 numbers in [0, 1) for a
    RandomCrop.  The rest as decode_views() has it."""
    if out is None:
        out = np.empty((size, size, channels), np.uint8)
    decode_views(data, (Cut(crop, size, draws, out),), channels, exif, sound, marks)
    return out


def resize(pixels: NDArray[Any], height: int, width: int, resampling: str = "bicubic") -> NDArray[np.uint8]:
    """(h, w, C) -> (height, width, C), by torch; another resampling than bicubic by PIL."""
    if resampling != "bicubic":
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
        return np.asarray(image.resize((width, height), Image.Resampling[resampling.upper()])).reshape(height, width, -1)
    # with the strides of channels-last in every dimension, also that of the one image: else the result is planes, and copying it into a
    # batch takes 0.4 ms
    planes = torch.from_numpy(np.ascontiguousarray(pixels).reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    resized: NDArray[np.uint8] = torch.nn.functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True).numpy()
    return resized[0].transpose(1, 2, 0)
