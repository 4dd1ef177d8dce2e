"""k-NN, linear probes and RankMe of an evaluation's features: against numpy, and the same on any number of ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Parallel
from vitscale.train.features import Features

ALL = ("knn", "linear", "rankme", "segmentation")
COUNT, SIZE, CLASSES, BAD = 61, 6, 4, (5, 17)
SIDE, PATCH, KINDS, VOID = 3, 4, 5, 255     # patches on a side, pixels of one, classes of pixels, of which the last is nowhere


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that overlap, so that no number is 0 or 1."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (COUNT,), generator=draw)
    return torch.randn(COUNT, SIZE, generator=draw) + torch.randn(CLASSES, SIZE, generator=draw)[labels], labels


def masked() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of patches and masks whose classes they tell of, with borders inside patches and places without a class."""
    draw = torch.Generator().manual_seed(1)
    masks = torch.randint(KINDS - 1, (COUNT, 2 * SIDE, 2 * SIDE), generator=draw).repeat_interleave(PATCH // 2, 1)
    masks = masks.repeat_interleave(PATCH // 2, 2).to(torch.uint8)
    main = masks[:, PATCH // 2::PATCH, PATCH // 2::PATCH].flatten(1).long()
    masks[:, 5:7, :9] = VOID
    masks[3] = VOID                         # an image of which nothing is known
    return torch.randn(COUNT, SIDE**2, SIZE, generator=draw) + 2 * torch.randn(KINDS, SIZE, generator=draw)[main], masks


def told(world: World, batch: int = 8) -> dict[str, float]:
    """Of this rank's share, in batches that dummies fill up."""
    (features, labels), (patches, masks) = images(), masked()
    each = -(-COUNT // world.size)
    low, high = world.rank * each, min((world.rank + 1) * each, COUNT)
    judge = Features(ALL, CLASSES, KINDS)
    for start in range(low, low + -(-each // batch) * batch, batch):
        index = torch.arange(start, start + batch)
        index[index >= high] = -1
        there = index.clamp(min=0)
        weight = torch.tensor([float(place >= 0 and place not in BAD) for place in index.tolist()])
        judge.patches = torch.where(weight[:, None, None] > 0, patches[there], torch.nan)
        judge.add(torch.where(weight[:, None] > 0, features[there], torch.nan), labels[there], weight, index, masks[there])
    return judge.numbers(world)


def on_rank(place: RankInfo, _: Any) -> dict[str, float]:
    with joined(Parallel(device="cpu"), place) as world:
        return told(world)


ALONE = World(0, 1, 0, 1, torch.device("cpu"), None)


def test_numbers_are_those_of_numpy():
    found = told(ALONE)
    features, labels = (one.numpy() for one in images())
    sound = np.array([place for place in range(COUNT) if place not in BAD])
    x, y = features[sound].astype(np.float64), labels[sound]

    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = z @ z.T
    np.fill_diagonal(cosines, -2)
    hits = 0
    for row, label in zip(cosines, y, strict=True):
        near = np.argsort(-row)[:20]
        hits += np.bincount(y[near], np.exp(row[near] / 0.07), CLASSES).argmax() == label
    assert found["eval_knn"] == pytest.approx(hits / len(y))

    hits = 0
    for half in (0, 1):
        fit, judged = sound % 2 == half, sound % 2 != half
        weights, offset = least_squares(x[fit], y[fit], CLASSES)
        hits += ((x[judged] @ weights + offset).argmax(axis=1) == y[judged]).sum()
    assert found["eval_linear"] == pytest.approx(hits / len(y))

    values = np.linalg.svd(x, compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert found["eval_rankme"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert 1 / CLASSES < found["eval_linear"] < 1
    assert 1 / CLASSES < found["eval_knn"] < 1


def least_squares(x: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(D, C), (C,): rows x (m, D) of classes y (m,)."""
    mean, spread, targets = x.mean(axis=0), x.std(axis=0), np.eye(classes)[y]
    inputs = (x - mean) / spread
    weights = np.linalg.solve(inputs.T @ inputs / len(x) + 1e-3 * np.eye(x.shape[1]), inputs.T @ (targets - targets.mean(axis=0)) / len(x))
    return weights / spread[:, None], targets.mean(axis=0) - (mean / spread) @ weights


def test_segmentation_is_that_of_a_probe_fitted_pixel_by_pixel():
    patches, masks = (one.numpy() for one in masked())
    patches, size = patches.astype(np.float64), SIDE * PATCH
    of_pixels = np.repeat(np.repeat(patches.reshape(COUNT, SIDE, SIDE, -1), PATCH, 1), PATCH, 2)
    sound = np.array([place for place in range(COUNT) if place not in BAD])
    between = (np.arange(size) + 0.5) / PATCH - 0.5        # a pixel's place among the patches' middles
    confusion = np.zeros((KINDS, KINDS))
    for half in (0, 1):
        fit = sound[sound % 2 == half]
        known = masks[fit] != VOID
        weights, offset = least_squares(of_pixels[fit][known], masks[fit][known], KINDS)
        for place in sound[sound % 2 != half]:
            maps = (patches[place] @ weights + offset).reshape(SIDE, SIDE, KINDS)
            rows = np.array([[[np.interp(at, range(SIDE), maps[:, column, kind]) for kind in range(KINDS)] for column in range(SIDE)]
                             for at in between])
            found = np.array([[[np.interp(at, range(SIDE), row[:, kind]) for kind in range(KINDS)] for at in between] for row in rows])
            there = masks[place] != VOID
            np.add.at(confusion, (masks[place][there], found.argmax(axis=2)[there]), 1)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    wanted = (confusion.diagonal()[union > 0] / union[union > 0]).mean()
    assert told(ALONE)["eval_miou"] == pytest.approx(wanted, rel=1e-6)
    assert union[-1] == 0
    assert 0.2 < wanted < 0.9


def test_nothing_readable_is_no_number_and_no_crash():
    judge = Features(ALL, CLASSES, KINDS)
    judge.patches = torch.full((3, SIDE**2, SIZE), torch.nan)
    judge.add(torch.full((3, SIZE), torch.nan), torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.tensor([0, 1, 2]),
              torch.zeros(3, SIDE * PATCH, SIDE * PATCH, dtype=torch.uint8))
    found = judge.numbers(ALONE)
    assert np.isnan(found["eval_knn"])
    assert np.isnan(found["eval_linear"])
    assert np.isnan(found["eval_miou"])
    assert found["eval_rankme"] == 0


@pytest.mark.slow
def test_ranks_tell_the_same_as_one_process():
    for found in run_ranks(3, on_rank, None, timeout_s=300):
        assert found == pytest.approx(told(ALONE), rel=1e-9)
