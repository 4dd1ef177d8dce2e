"""How good the features of an evaluation's images are: k-NN, a linear probe, RankMe; the same on any number of ranks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.metrics import OF_FEATURES
from vitscale.objectives.collapse import rankme
from vitscale.objectives.votes import NEIGHBOURS, voted
from vitscale.parallel.world import World

RIDGE = 1e-3        # of the probe's least squares, as a share of the samples, features having a variance of 1
_CHUNK = 1024       # images compared at once


class Features:
    """Of one evaluation.  Nothing here is drawn: what is fitted is fitted to the images of odd places and judged by those of even ones,
    then the other way round, and an image's neighbours are all others."""

    def __init__(self, wanted: Sequence[str], classes: int) -> None:
        """wanted: of OF_FEATURES; classes of the labels."""
        self._wanted, self._classes = wanted, classes
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, features: Tensor, labels: Tensor, weight: Tensor, index: Tensor) -> None:
        """A batch: features (b, D), labels (b,), index (b,) int64 its places in the set; of weight 0 what does not count."""
        places = torch.where(weight > 0, index.to(weight.device), -1)
        self._rows.append((features.float().clone(), labels if labels.ndim == 1 else labels.argmax(dim=1), places))

    def numbers(self, world: World) -> dict[str, float]:
        """By column.  Collective."""
        if not self._wanted:
            return {}
        features, labels, places = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        known = places >= 0
        features = torch.where(known[:, None], features, 0.0)
        found: dict[str, float] = {}
        if "knn" in self._wanted:
            found["knn"] = self._nearest(features, labels, places, world)
        if {"linear", "rankme"} & set(self._wanted):
            moments = torch.stack([_moments(features, labels, known & (places % 2 == half), self._classes) for half in (0, 1)])
            moments = world.sum_over_samples(moments)
            size = features.shape[1]
            if "linear" in self._wanted:
                found["linear"] = _probe(features, labels, places, moments, world)
            if "rankme" in self._wanted:
                found["rankme"] = float(rankme(moments.sum(dim=0)[:size, :size]))
        return {OF_FEATURES[name].column: value for name, value in found.items()}

    def _nearest(self, features: Tensor, labels: Tensor, places: Tensor, world: World) -> float:
        """The share of images whose class their neighbours vote for."""
        bank, classes, where = (world.gathered(one) for one in (F.normalize(features, dim=1), labels, places))
        order = where.argsort()[int((where < 0).sum()):]        # that of the set, whoever looked at which images
        bank, classes, where = bank[order], classes[order], where[order]
        hits = torch.zeros(2, dtype=torch.float64, device=features.device)
        for queries, own, at in zip(*(one.split(_CHUNK) for one in (F.normalize(features, dim=1), labels, places)), strict=True):
            if len(bank) < 2:
                break
            cosines = queries @ bank.T
            cosines[at[:, None] == where] = -2.0                # itself
            best, numbers = cosines.topk(min(NEIGHBOURS, len(bank) - 1), dim=1)
            right = voted(best, classes[numbers], self._classes) == own
            hits += torch.stack([(right & (at >= 0)).sum(), (at >= 0).sum()])
        right, count = world.sum_over_samples(hits).tolist()
        return right / count if count else float("nan")


def _moments(features: Tensor, labels: Tensor, part: Tensor, classes: int) -> Tensor:
    """(D + 1, D + 1 + C) fp64: x x^T, and x times the class's one, over images x of `part` with a one behind them."""
    ones = features.new_ones(len(features), 1)
    rows = torch.where(part[:, None], torch.cat([features, ones], dim=1), 0.0).double()
    return rows.T @ torch.cat([rows, F.one_hot(labels, max(classes, 1)).double()], dim=1)


def _probe(features: Tensor, labels: Tensor, places: Tensor, moments: Tensor, world: World) -> float:
    """Least squares from standardised features to the class's one, with a little ridge; the share of the other half that it gets right."""
    size = features.shape[1]
    hits = torch.zeros(2, dtype=torch.float64, device=features.device)
    for half in (0, 1):
        count = moments[half, size, size].clamp(min=1)
        mean, targets = moments[half, size, :size] / count, moments[half, size, size + 1:] / count
        centred = moments[half, :size, :size] / count - mean[:, None] * mean
        spread = centred.diagonal().clamp(min=0).sqrt() + 1e-6
        weights = torch.linalg.solve(
            centred / spread[:, None] / spread + RIDGE * torch.eye(size, dtype=torch.float64, device=features.device),
            (moments[half, :size, size + 1:] / count - mean[:, None] * targets) / spread[:, None])
        judged = (places >= 0) & (places % 2 != half)
        right = (((features.double() - mean) / spread) @ weights + targets).argmax(dim=1) == labels
        hits += torch.stack([(right & judged).sum(), judged.sum()])
    right, count = world.sum_over_samples(hits).tolist()
    return right / count if count else float("nan")
