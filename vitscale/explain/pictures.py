"""Pictures as arrays (height, width, 3) uint8, for a notebook or a file: an image cut into patches, a map laid over an image."""

from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from vitscale.explain.look import Look, Unexplained, check_head, check_layer
from vitscale.models import Backbone

Picture = NDArray[np.uint8]
HEAT = "inferno"        # colours of a map: dark is little; told apart in grey and by the colour-blind
_SIDE = 448             # pixels on a side that small images are enlarged to, by whole numbers


def as_picture(image: Picture | Tensor) -> Picture:
    """(h, w, 1 or 3) uint8, or a tensor (C, h, w) of any range, stretched to 0..255 -> (h, w, 3) uint8."""
    if isinstance(image, Tensor):
        low, high = image.amin(), image.amax()
        image = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def enlarged(picture: Picture, side: int = _SIDE) -> Picture:
    """Each pixel as a square, so that the longer side comes near `side`; larger pictures stay as they are."""
    factor = max(side // max(picture.shape[:2]), 1)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def visualize_patches(image: Picture | Tensor, patch: int, file: Path | None = None) -> Picture:
    """The image cut into patches of `patch` pixels with gaps between them: what a Vision Transformer is given.

    image as as_picture() takes it.  Raises Unexplained when the patch does not divide it.
    """
    picture = as_picture(image)
    height, width = picture.shape[:2]
    if height % patch or width % patch:
        raise Unexplained(f"patches of {patch} pixels do not divide an image of {height} x {width}")
    picture = enlarged(picture)
    side = picture.shape[0] * patch // height
    gap = max(side // 12, 2)
    down, across = height // patch, width // patch
    cut = picture.reshape(down, side, across, side, 3)
    sheet = np.full((down, side + gap, across, side + gap, 3), 255, np.uint8)
    sheet[:, :side, :, :side] = cut
    return _kept(sheet.reshape(down * (side + gap), across * (side + gap), 3)[:-gap, :-gap], file)


def heated(picture: Picture, heat: Tensor | NDArray[np.floating], strength: float = 0.65, top: float | None = None) -> Picture:
    """A map (down, across), not negative, over a greyed picture: the more, the brighter.  `top`: what is brightest; None: its maximum.

    Each place of the map is drawn as the square it stands for, not smoothed: it knows no more than that.
    """
    values = np.asarray(heat, dtype=np.float64)
    values = np.clip(values / max(values.max() if top is None else top, 1e-30), 0, 1)
    return in_colours(picture, colormaps[HEAT](values)[:, :, :3], strength)


def in_colours(picture: Picture, colours: Tensor | NDArray[np.floating], strength: float = 0.65) -> Picture:
    """Colours (down, across, 3), 0 to 1, of the places of a greyed picture."""
    picture = enlarged(picture)
    height, width = picture.shape[:2]
    laid = cv2.resize(np.asarray(colours, dtype=np.float64), (width, height), interpolation=cv2.INTER_NEAREST) * 255
    grey = (picture @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    return np.rint(grey * (1 - strength) + laid * strength).astype(np.uint8)


def visualize_attention_weights(
    model: Backbone, image: Tensor, layer: int = -1, head: int | None = None, token: int | tuple[int, int] | None = None,
    picture: Picture | None = None, file: Path | None = None,
) -> Picture:
    """Whom one token looks at in one layer: its weights for the patches, over the image.

    image (C, height, width), normalised as the model wants it; `picture`: what it looks like, else the image stretched.  layer from 0,
    or from the last one back; head None: the mean of all; token None: what the classifier reads (Look.reading), a number: that token
    (class tokens come first), a pair: the patch in that row and column.  Raises Unexplained for what the model has not got.
    """
    layer = check_layer(model, layer)
    look = Look(model, image[None])
    weights = look.maps[layer, 0]
    rows = weights.mean(dim=0) if head is None else weights[check_head(model, head)]
    row = look.reading[0] @ rows if token is None else rows[_token(look, token)]
    shown = as_picture(image) if picture is None else as_picture(picture)
    return _kept(heated(shown, row[look.before:].unflatten(0, look.grid)), file)


def _token(look: Look, token: int | tuple[int, int]) -> int:
    (down, across), count = look.grid, look.maps.shape[-1]
    if isinstance(token, tuple):
        if not (0 <= token[0] < down and 0 <= token[1] < across):
            raise Unexplained(f"there is no patch in row {token[0]}, column {token[1]}; there are {down} rows and {across} columns")
        return look.before + token[0] * across + token[1]
    if not 0 <= token < count:
        raise Unexplained(f"there is no token {token}; there are tokens 0 to {count - 1}, patches from {look.before} on")
    return token


def png(picture: Picture) -> bytes:
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(picture[:, :, ::-1]))
    assert done
    return encoded.tobytes()


def _kept(picture: Picture, file: Path | None) -> Picture:
    if file is not None:
        file.write_bytes(png(picture))
    return picture
