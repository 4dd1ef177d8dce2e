"""What patches tell of what is where: a linear probe of frozen features against masks, measured by mean intersection over union."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.data.mask import UNLABELLED
from vitscale.parallel.world import World

RIDGE = 1e-3        # of a probe's least squares, as a share of what is fitted to, features having a variance of 1
_AT_ONCE = 8        # images whose answers are brought to pixels together


class Segmentation:
    """Of one evaluation's images: a probe is fitted to the pixels of those at odd places and judged by those at even ones, and the other
    way round.  As DINOv2's linear one, each pixel learns with its patch's features and is judged by patches' answers brought bilinearly to
    its place (Oquab et al. 2024, section 7.4); it is fitted by least squares, so that nothing is drawn."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._moments: list[Tensor] = []                            # of each half
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []        # on the host: of thousands of images they are gigabytes

    def add(self, patches: Tensor, masks: Tensor, places: Tensor) -> None:
        """A batch: features (b, N, D) of a square grid's patches, masks (b, S, S) uint8, places (b,) int64 in the set, or -1: left out."""
        known, patches = places >= 0, patches.float()
        patches, masks, places = patches[known], masks.to(patches.device)[known], places[known]
        counts = pixels_of(masks, math.isqrt(patches.shape[1]), self._classes)
        moments = [moments_of(patches[places % 2 == half].flatten(0, 1), counts[places % 2 == half].flatten(0, 1)) for half in (0, 1)]
        self._moments = [old + new for old, new in zip(self._moments, moments, strict=True)] if self._moments else moments
        self._kept.append((patches.cpu(), masks.cpu(), places.cpu()))

    def mean_iou(self, world: World) -> float:
        """Over the classes that a mask or an answer has, of all images' pixels together; NaN without any.  Collective."""
        moments, classes = world.sum_over_samples(torch.stack(self._moments)), self._classes
        confusion = torch.zeros(classes**2, dtype=torch.float64, device=moments.device)
        for half in (0, 1):
            weights, offset = fitted(moments[half])
            for patches, masks, places in self._kept:
                judged = places % 2 != half
                for some, wanted in zip(patches[judged].split(_AT_ONCE), masks[judged].split(_AT_ONCE), strict=True):
                    answers = (some.to(moments.device).double() @ weights + offset).float().transpose(1, 2)
                    answers = answers.unflatten(2, (math.isqrt(answers.shape[2]), -1))
                    found = F.interpolate(answers, size=wanted.shape[1:], mode="bilinear", align_corners=False).argmax(dim=1)
                    wanted = wanted.to(moments.device).long()
                    labelled = wanted != UNLABELLED
                    confusion += torch.bincount(wanted[labelled] * classes + found[labelled], minlength=classes**2)
        counts = world.sum_over_samples(confusion).view(classes, classes)
        union = counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()
        return float((counts.diagonal() / union)[union > 0].mean())


def pixels_of(masks: Tensor, side: int, classes: int) -> Tensor:
    """masks (b, S, S) -> (b, side^2, classes): how many pixels of each patch have each class; those without one are left out."""
    patch = masks.shape[1] // side
    inside = masks.unflatten(2, (side, patch)).unflatten(1, (side, patch)).transpose(2, 3).reshape(-1, patch**2).long()
    inside = torch.where(inside == UNLABELLED, classes, inside)
    counts = torch.zeros(len(inside), classes + 1, device=masks.device)
    return counts.scatter_add_(1, inside, torch.ones_like(inside, dtype=counts.dtype))[:, :classes].unflatten(0, (len(masks), side**2))


def moments_of(features: Tensor, targets: Tensor) -> Tensor:
    """x (m, D), y (m, C), how often each is of each class -> (D + 1, D + 1 + C) fp64: sums of n x x^T and of x y^T, n = sum of y, of x
    with a one behind them.  Those of all ranks are added up."""
    rows = torch.cat([features, features.new_ones(len(features), 1)], dim=1).double()
    return rows.T @ torch.cat([rows * targets.sum(dim=1, keepdim=True), targets], dim=1)


def fitted(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares from standardised features to the class's one, with a little ridge -> (D, C) and (C,) of answers x W + b."""
    size = len(moments) - 1
    count = moments[size, size].clamp(min=1)
    mean, targets = moments[size, :size] / count, moments[size, size + 1:] / count
    centred = moments[:size, :size] / count - mean[:, None] * mean
    spread = centred.diagonal().clamp(min=0).sqrt() + 1e-6
    weights = torch.linalg.solve(
        centred / spread[:, None] / spread + RIDGE * torch.eye(size, dtype=torch.float64, device=moments.device),
        (moments[:size, size + 1:] / count - mean[:, None] * targets) / spread[:, None]) / spread[:, None]
    return weights, targets - mean @ weights
