"""What an image goes through before a trained model sees it: evaluation's decoding, crop and normalisation, one image or many."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitscale.data import augment
from vitscale.data.bad import BadSample
from vitscale.data.crop import CentreCrop
from vitscale.data.decode import decode
from vitscale.recipe import Recipe

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Transform:
    """An image -> the tensor that the model takes.  The same steps, by the same code, as in the run's own evaluations."""

    image: int                  # S, pixels on a side
    channels: int = 3           # 1: grey
    crop: float = 0.875         # share of the shorter side that the centre crop keeps
    mean: Colour = (0.485, 0.456, 0.406)    # RGB, 0..1
    std: Colour = (0.229, 0.224, 0.225)
    exif: bool = False          # turn images upright first
    resize: int | tuple[int, int] | None = None     # these three as CentreCrop has them
    resampling: str = "bicubic"
    half_even: bool = False

    @property
    def centre(self) -> CentreCrop:
        """What of an image is taken."""
        return CentreCrop(self.crop, self.resize, self.resampling, self.half_even)

    @classmethod
    def of(cls, recipe: Recipe) -> "Transform":
        """That of the evaluations of a recipe."""
        data = recipe.data
        return cls(recipe.model.image, recipe.model.channels, recipe.evaluate.crop, data.augment.mean, data.augment.std,
                   data.exif_orientation == "apply")

    def __call__(self, image: Any) -> Tensor:
        """A path, the bytes of a file, an array (h, w) or (h, w, 3) uint8, or one of PIL's images -> (C, S, S) fp32, normalised.

        Raises BadSample for what is damaged or no image.
        """
        return self.normalised(torch.from_numpy(self.pixels(_bytes(image)))[None])[0]

    def pixels(self, data: bytes) -> NDArray[np.uint8]:
        """The bytes of an image -> (S, S, C) uint8.  Raises BadSample."""
        return decode(data, self.centre, self.image, self.channels, exif=self.exif)

    def normalised(self, pixels: Tensor) -> Tensor:
        """(B, S, S, C) uint8 -> (B, C, S, S) fp32."""
        return augment.apply(pixels, None, self.mean, self.std)


def _bytes(image: Any) -> bytes:
    """What decode() takes of whatever people hold images in; arrays go through PNG, which keeps every bit."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise BadSample("read", error.strerror or str(error)) from None
    if hasattr(image, "convert"):
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.ascontiguousarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise TypeError("an image wants to be a path, bytes, one of PIL's, or uint8 of (h, w) or (h, w, 3); "
                        f"got {pixels.dtype} of {pixels.shape}")
    done, encoded = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert done
    return encoded.tobytes()
