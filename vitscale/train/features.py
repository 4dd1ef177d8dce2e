"""How good the features of an evaluation's images are: k-NN, linear probes, RankMe; the same on any number of ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.metrics import OF_FEATURES
from vitscale.models.vit import VisionTransformer
from vitscale.objectives.collapse import rankme
from vitscale.objectives.votes import NEIGHBOURS, voted
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.train.segmentation import Segmentation, fitted, moments_of

_CHUNK = 1024       # images compared at once


class Features:
    """Of one evaluation.  Nothing here is drawn: what is fitted is fitted to the images of odd places and judged by those of even ones,
    then the other way round, and an image's neighbours are all others."""

    def __init__(self, wanted: Sequence[str], classes: int, mask_classes: int | None = None) -> None:
        """wanted: of OF_FEATURES; classes of the labels, and of masks' pixels."""
        self._wanted, self._classes = wanted, classes
        self._segmentation = Segmentation(mask_classes or 0) if "segmentation" in wanted else None
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.patches: Tensor | None = None      # (b, N, D) of the first pass since the last batch: a teacher is asked before the student

    def add(self, features: Tensor, labels: Tensor, weight: Tensor, index: Tensor, masks: Tensor | None = None) -> None:
        """A batch: features (b, D), labels (b,), index (b,) int64 its places in the set; of weight 0 what does not count.  Masks (b, S, S)
        are of the patches that have come by."""
        places = torch.where(weight > 0, index.to(weight.device), -1)
        if self._segmentation is not None:
            assert masks is not None
            assert self.patches is not None
            self._segmentation.add(self.patches, masks, places)
            self.patches = None
        self._rows.append((features.float().clone(), labels if labels.ndim == 1 else labels.argmax(dim=1), places))

    def numbers(self, world: World) -> dict[str, float]:
        """By column.  Collective."""
        if not self._wanted:
            return {}
        features, labels, places = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        known = places >= 0
        features = torch.where(known[:, None], features, 0.0)
        targets = F.one_hot(labels, max(self._classes, 1))
        found: dict[str, float] = {}
        if "knn" in self._wanted:
            found["knn"] = self._nearest(features, labels, places, world)
        if {"linear", "rankme"} & set(self._wanted):
            halves = [known & (places % 2 == half) for half in (0, 1)]
            moments = world.sum_over_samples(torch.stack([moments_of(features[half], targets[half]) for half in halves]))
            size = features.shape[1]
            if "linear" in self._wanted:
                found["linear"] = _probe(features, labels, places, moments, world)
            if "rankme" in self._wanted:
                found["rankme"] = float(rankme(moments.sum(dim=0)[:size, :size]))
        if self._segmentation is not None:
            found["segmentation"] = self._segmentation.mean_iou(world)
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


@contextmanager
def judging(recipe: Recipe, model: nn.Module) -> Iterator[Features | None]:
    """What evaluate.features asks of the model, if anything, with an eye on what passes its last norm where patches are judged."""
    wanted = recipe.evaluate.features
    if not wanted:
        yield None
        return
    features = Features(wanted, recipe.model.classes, recipe.data.mask_classes)
    if "segmentation" not in wanted:
        yield features
        return
    assert isinstance(model, VisionTransformer)

    def pass_by(module: nn.Module, given: Any, tokens: Tensor) -> None:
        if features.patches is None:
            features.patches = tokens[:, model.before:]

    watch = model.norm.register_forward_hook(pass_by)
    try:
        yield features
    finally:
        watch.remove()


def _probe(features: Tensor, labels: Tensor, places: Tensor, moments: Tensor, world: World) -> float:
    """The share of either half that the other's least squares get right."""
    hits = torch.zeros(2, dtype=torch.float64, device=features.device)
    for half in (0, 1):
        weights, offset = fitted(moments[half])
        judged = (places >= 0) & (places % 2 != half)
        right = (features.double() @ weights + offset).argmax(dim=1) == labels
        hits += torch.stack([(right & judged).sum(), judged.sum()])
    right, count = world.sum_over_samples(hits).tolist()
    return right / count if count else float("nan")
