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


@only_bad_samples
def decode_views(data: bytes, cuts: Sequence[Cut], channels: int = 3, exif: bool = False, sound: bool = False,
                 marks: NDArray[np.uint32] | None = None) -> None:
    """Every view of one image, which is decoded once for all of them: as large as the one that wants most of it.

    Of a single view this is decode(), with whose options.  Several are random crops.  Raises BadSample; then what they are put into holds
    nothing of use.
    """
    if len(cuts) == 1:
        one, = cuts
        decode(data, one.crop, one.size, channels, one.draws, exif, sound, one.out, marks)
        return
    header, turn = checked_header(data), orientation(data) if exif else 1
    height, width = header.height, header.width
    seen = (width, height) if swaps(turn) else (height, width)
    boxes = []
    for cut in cuts:
        assert isinstance(cut.crop, RandomCrop)
        boxes.append(stored_box(cut.crop.box(*seen, cut.draws), height, width, turn))
    scale = min(reduction(box, cut.size) for box, cut in zip(boxes, cuts, strict=True)) if reducible(header) else 1
    if marks is not None and not sound:
        marks[:] = 0        # ways into the coded data are of use to who decodes a part of it
    bottom = -(-max(top + h for top, _, h, _ in boxes) // scale)
    pixels = decode_above(data, channels, header, scale, bottom) if sound else decode_checked(data, channels, header, scale)
    for (top, left, h, w), cut in zip(boxes, cuts, strict=True):
        square = resample(pixels, (top, left, h, w), scale, cut.size, cut.size) if scale > 1 else \
            resize(pixels[top:top + h, left:left + w], cut.size, cut.size)
        cut.out[:] = upright(square, turn)


@only_bad_samples
def upright_size(data: bytes, exif: bool) -> tuple[int, int]:
    """(height, width) of an image as decode() sees it.  Raises BadSample."""
    header = checked_header(data)
    return (header.width, header.height) if exif and swaps(orientation(data)) else (header.height, header.width)


@only_bad_samples
def decode(
    data: bytes, crop: RandomCrop | CentreCrop, size: int, channels: int = 3, draws: Sequence[float] = (), exif: bool = False,
    sound: bool = False, out: NDArray[np.uint8] | None = None, marks: NDArray[np.uint32] | None = None,
) -> NDArray[np.uint8]:
    """One image -> (S, S, C) uint8, RGB or grey: into `out`, contiguous, if it is given.  draws: 22 numbers in [0, 1) for a RandomCrop.

    Resized by an antialiased bicubic on uint8, the filter of PIL's BICUBIC, in a single pass.  A JPEG whose random crop is at least
    three times as large as the output is decoded at 1/2, 1/4 or 1/8, and the box, which may cut pixels of that, resized from there.
    Evaluation never does so, since its numbers are compared with others'.  Raises BadSample; then `out` holds nothing of use.

    exif: the box is drawn in the image as its EXIF orientation has it looked at.  It is cut out of the stored pixels, and only the resized
    square is turned: as right, and nothing large is copied.

    sound: these bytes were decoded before and nothing was wrong with them (decoded_before.py).  Then what lies below the crop is left
    out, which takes less time and gives the same pixels; else it is read too, since damage is told only at an image's end.

    marks: of these bytes (decoded_before.py); written unless sound, read if sound, by which most of what lies above the crop is left out
    too.

    A JPEG is done by the native decoder where that was built and takes it; else by simplejpeg and torch, to the same pixels.
    """
    header = checked_header(data)
    height, width = header.height, header.width
    turn = orientation(data) if exif else 1
    seen = (width, height) if swaps(turn) else (height, width)
    reduces = reducible(header)
    if isinstance(crop, RandomCrop):
        box = stored_box(crop.box(*seen, draws), height, width, turn)
        scale = reduction(box, size) if reduces else 1
        resized, window = (size, size), (0, 0, size, size)
    else:
        h, w = crop.resized(*seen, size)
        resized = (w, h) if swaps(turn) else (h, w)
        box, scale, window = (0, 0, height, width), 1, stored_box(crop.middle(h, w, size), *resized, turn)
    if out is None:
        out = np.empty((size, size, channels), np.uint8)
    resampling = "bicubic" if isinstance(crop, RandomCrop) else crop.resampling
    if reduces and resampling == "bicubic" and native.available() and (sound or jpeg.zeroed(data, header) is None):
        square = out if turn == 1 else np.empty_like(out)
        if native.crop(data, square, scale, box, resized, window, whole=not sound, marks=marks):
            if turn != 1:
                out[:] = upright(square, turn)
            return out
    if marks is not None and not sound:
        marks[:] = 0
    top, left, h, w = box
    bottom = -(-(top + h) // scale)
    pixels = decode_above(data, channels, header, scale, bottom) if sound else decode_checked(data, channels, header, scale)
    row, column, _, _ = window
    square = resample(pixels, box, scale, *resized) if scale > 1 else resize(pixels[top:top + h, left:left + w], *resized, resampling)
    out[:] = upright(square[row:row + size, column:column + size], turn)
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
