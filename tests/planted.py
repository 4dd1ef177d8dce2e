"""Real digits at random places of real photos, with masks: where the object is, is known."""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

SIZE, DIGIT = 24, 12        # pixels on a side of an image, and of the digit in it


class Planted(NamedTuple):
    images: Tensor          # (B, 3, SIZE, SIZE) about -1 to 1
    labels: Tensor          # (B,) int64, 0 to 9
    masks: Tensor           # (B, SIZE, SIZE) bool: the digit's ink
    boxes: Tensor           # (B, 2) int64: top and left of the DIGIT x DIGIT square that it stands in


@cache
def _real() -> tuple[Tensor, Tensor, list[Tensor]]:
    digits = load_digits()
    ink = F.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=(DIGIT, DIGIT), mode="bilinear")[:, 0]
    photos = [F.avg_pool2d(torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255, 3) for photo in load_sample_images().images]
    return ink, torch.tensor(digits.target), photos


def planted(count: int, seed: int, training: bool = True, digits: tuple[int, ...] = tuple(range(10))) -> Planted:
    """The first 1400 of the digits for training, the others for tests; labels count through `digits`."""
    ink, targets, photos = _real()
    generator = torch.Generator().manual_seed(seed)
    half = slice(0, 1400) if training else slice(1400, None)
    rows = torch.isin(targets[half], torch.tensor(digits)).nonzero()[:, 0] + (0 if training else 1400)
    rows = rows[torch.randint(len(rows), (count,), generator=generator)]
    images = torch.empty(count, 3, SIZE, SIZE)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    boxes = torch.randint(SIZE - DIGIT + 1, (count, 2), generator=generator)
    for number, (row, (top, left)) in enumerate(zip(rows.tolist(), boxes.tolist(), strict=True)):
        photo = photos[int(torch.randint(len(photos), (), generator=generator))]
        y, x = (int(torch.randint(side - SIZE + 1, (), generator=generator)) for side in photo.shape[1:])
        image = 0.6 * photo[:, y:y + SIZE, x:x + SIZE]
        square = slice(top, top + DIGIT), slice(left, left + DIGIT)
        images[number] = image
        images[number][:, *square] = image[:, *square] * (1 - ink[row]) + ink[row]
        masks[number][square] = ink[row] > 0.4
    labels = torch.tensor([digits.index(int(targets[row])) for row in rows])
    return Planted(images * 2 - 1, labels, masks, boxes)
