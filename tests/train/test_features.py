"""k-NN, linear probe and RankMe of an evaluation's features: against numpy, and the same on any number of ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Parallel
from vitscale.train.features import Features

ALL = ("knn", "linear", "rankme")
COUNT, SIZE, CLASSES, BAD = 61, 6, 4, (5, 17)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that overlap, so that no number is 0 or 1."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (COUNT,), generator=draw)
    return torch.randn(COUNT, SIZE, generator=draw) + torch.randn(CLASSES, SIZE, generator=draw)[labels], labels


def told(world: World, batch: int = 8) -> dict[str, float]:
    """Of this rank's share, in batches that dummies fill up."""
    features, labels = images()
    each = -(-COUNT // world.size)
    low, high = world.rank * each, min((world.rank + 1) * each, COUNT)
    judge = Features(ALL, CLASSES)
    for start in range(low, low + -(-each // batch) * batch, batch):
        index = torch.arange(start, start + batch)
        index[index >= high] = -1
        there = index.clamp(min=0)
        weight = torch.tensor([float(place >= 0 and place not in BAD) for place in index.tolist()])
        judge.add(torch.where(weight[:, None] > 0, features[there], torch.nan), labels[there], weight, index)
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
        mean, spread = x[fit].mean(axis=0), x[fit].std(axis=0)
        inputs, targets = (x - mean) / spread, np.eye(CLASSES)[y]
        offset = targets[fit].mean(axis=0)
        normal = inputs[fit].T @ inputs[fit] / fit.sum() + 1e-3 * np.eye(SIZE)
        weights = np.linalg.solve(normal, inputs[fit].T @ (targets[fit] - offset) / fit.sum())
        hits += ((inputs[judged] @ weights + offset).argmax(axis=1) == y[judged]).sum()
    assert found["eval_linear"] == pytest.approx(hits / len(y))

    values = np.linalg.svd(x, compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert found["eval_rankme"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert 1 / CLASSES < found["eval_linear"] < 1
    assert 1 / CLASSES < found["eval_knn"] < 1


def test_nothing_readable_is_no_number_and_no_crash():
    judge = Features(ALL, CLASSES)
    judge.add(torch.full((3, SIZE), torch.nan), torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.tensor([0, 1, 2]))
    found = judge.numbers(ALONE)
    assert np.isnan(found["eval_knn"])
    assert np.isnan(found["eval_linear"])
    assert found["eval_rankme"] == 0


@pytest.mark.slow
def test_ranks_tell_the_same_as_one_process():
    for found in run_ranks(3, on_rank, None, timeout_s=300):
        assert found == pytest.approx(told(ALONE), rel=1e-9)
