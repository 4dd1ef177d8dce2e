"""Mixup and CutMix inside groups of a micro-batch, with the soft targets they make."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitscale.data.draws import MIX, group_uniforms
from vitscale.recipe.schema import Augment


@dataclass(frozen=True)
class Mix:
    """Who is mixed with whom in a micro-batch, and how much.  `share` 1 with an empty box: not at all."""

    partner: Tensor         # (b,) int64 place in the micro-batch
    share: Tensor           # (b,) float32, lambda: what of the target is the sample's own
    box: Tensor             # (b, 4) int64 top, left, bottom, right of what comes from the partner (CutMix); empty: blend (mixup)
    classes: int            # width of the targets


def plan_mix(
    augment: Augment, seed: int, epoch: int, places: NDArray[np.int64], group: int, size: int, image: int, classes: int,
) -> Mix | None:
    """The mixing of samples at `places` (m,) of the epoch, ascending in whole groups, in a micro-batch of `size`; None: nothing mixes.

    One draw per group, keyed by its place in the epoch: lambda ~ Beta(alpha, alpha), for mixup (Zhang et al. 2018) or CutMix (Yun et al.
    2019, whose lambda is then the share of the pixels that stay).  Partners are the group reversed, as timm reverses a batch, so the
    middle one of an odd group stays as it is.
    """
    if not (augment.mixup or augment.cutmix):
        return None
    partner, share, box = np.arange(size), np.ones(size, np.float32), np.zeros((size, 4), np.int64)
    numbers, first, inverse, counts = np.unique(places // group, return_index=True, return_inverse=True, return_counts=True)
    from scipy.special import betaincinv  # a ninth of a run's imports, and few recipes want it

    slots = np.arange(len(places))
    partner[:len(places)] = 2 * first[inverse] + counts[inverse] - 1 - slots
    whether, which, quantile, row, column = group_uniforms(seed, epoch, numbers, MIX.stop).T
    cuts = which < (augment.switch_prob if augment.mixup and augment.cutmix else float(augment.cutmix > 0))
    alpha = np.where(cuts, augment.cutmix or 1.0, augment.mixup or 1.0)
    # on a grid, so that the last digits of the special function, which differ between versions, do not matter
    stay = np.round(betaincinv(alpha, alpha, quantile) * 2**16) / 2**16
    side = np.where(cuts, (image * np.sqrt(1 - stay)).astype(np.int64), 0)
    boxes = np.zeros((len(numbers), 4), np.int64)
    for axis, middle in enumerate((row, column)):
        centre = (middle * image).astype(np.int64)
        boxes[:, axis] = np.clip(centre - side // 2, 0, image)
        boxes[:, axis + 2] = np.clip(centre + side // 2, 0, image)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stay = np.where(cuts, 1 - area / image**2, stay)
    mixed = (whether < augment.mix_prob)[inverse] & (partner[:len(places)] != slots)
    share[:len(places)] = np.where(mixed, stay[inverse], 1)
    box[:len(places)] = np.where(mixed[:, None], boxes[inverse], 0)
    return Mix(torch.from_numpy(partner), torch.from_numpy(share), torch.from_numpy(box), classes)


def apply(images: Tensor, labels: Tensor, weight: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """images (b, C, S, S) normalised, labels (b,) or multi-hot (b, classes), weight (b,), all on one device -> (images mixed, targets
    (b, classes) float32).

    Where a sample or its partner has weight 0 nothing is mixed: the target is the sample's own label alone.
    """
    real = (weight > 0) & (weight[mix.partner] > 0)
    share = torch.where(real, mix.share, 1.0)
    box = torch.where(real[:, None], mix.box, 0)
    other = images[mix.partner]
    inside = in_box(box, images.shape[2], images.shape[3])[:, None]                         # (b, 1, S, S)
    cut = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
    own = torch.where(cut, 1.0, share).to(images.dtype).view(-1, 1, 1, 1)
    mixed = torch.where(inside, other, torch.where(own == 1, images, images * own + other * (1 - own)))
    if labels.ndim == 2:
        return mixed, share[:, None] * labels + (1 - share)[:, None] * labels[mix.partner]
    targets = torch.zeros((len(labels), mix.classes), device=labels.device)
    targets.scatter_(1, labels[:, None], share[:, None])
    # not scatter_add_: two writes at most, and the second may fall on the first
    theirs = labels[mix.partner][:, None]
    targets.scatter_(1, theirs, targets.gather(1, theirs) + (1 - share)[:, None])
    return mixed, targets


def in_box(box: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in each box (b, 4) of top, left, bottom, right.  -> (b, height, width) bool"""
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    row, column = (torch.arange(count, device=box.device) for count in (height, width))
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]
