"""Neighbours, retrieval, linear and few-shot probes on features whose answers are known, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score

from vitscale.errors import RecipeError
from vitscale.evaluate.neighbours import knn, nearest, normed, retrieval
from vitscale.evaluate.probe import BIAS, RIDGE, few_shot, linear


def clusters(each: int, spread: float, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, 16))
    labels = np.repeat(np.arange(classes), each)
    return (centres[labels] + spread * draw.normal(size=(len(labels), 16))).astype(np.float32), labels


def test_neighbours_are_the_nearest_by_brute_force_and_by_faiss():
    base, queries = normed(clusters(30, 1.0)[0]), normed(clusters(5, 1.0, seed=1)[0])
    cosines, numbers = nearest(queries, base, 7)
    brute = np.argsort(-(queries @ base.T).numpy(), axis=1, kind="stable")[:, :7]
    assert np.array_equal(numbers.numpy(), brute)
    assert torch.allclose(cosines, (queries[:, None] * base[numbers]).sum(dim=2), atol=1e-6)
    pytest.importorskip("faiss")
    values, others = nearest(queries, base, 7, faiss=True)
    assert torch.equal(others, numbers)
    assert torch.allclose(values, cosines, atol=1e-6)


def test_well_parted_classes_are_told_by_all_and_noise_by_none():
    train, labels = clusters(40, 0.2)
    val, answers = clusters(20, 0.2, seed=1)
    noise = np.random.default_rng(3).permutation(labels)
    for given, low, high in ((labels, 0.99, 1.0), (noise, 0.0, 0.6)):
        assert low <= knn(train, given, val, answers)["top1"]["value"] <= high
        assert low <= linear(train, given, val, answers)["top1"]["value"] <= high
    shots = few_shot(train, labels, val, answers)
    assert list(shots) == ["1", "5", "10", "25"]
    assert shots["1"]["top1"] > 0.9
    assert shots["25"]["top1"] == 1.0


def test_a_near_neighbour_outvotes_two_far_ones():
    train = np.array([[1, 0], [0.6, 0.8], [0.6, -0.8]], np.float32)
    found = knn(train, np.array([1, 0, 0]), np.array([[1, 0.01]], np.float32), np.array([1]), k=3)
    assert found["top1"]["value"] == 1.0


def test_few_shot_is_ridge_regression():
    """One draw of all samples: scikit-learn's answer with the same penalty, bias and targets."""
    train, labels = clusters(6, 1.5)
    val, answers = clusters(50, 1.5, seed=1)
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64) + 1e-5
    x, z = (np.c_[(values - mean) / deviation, np.full(len(values), BIAS)] for values in (train, val))
    model = Ridge(alpha=RIDGE, fit_intercept=False, solver="cholesky").fit(x, np.where(labels[:, None] == np.arange(4), 1.0, -1.0))
    expected = float((model.predict(z).argmax(axis=1) == answers).mean())
    assert few_shot(train, labels, val, answers, shots=(6,), seeds=1)["6"]["top1"] == pytest.approx(expected)
    assert 0.5 < expected < 1.0


def test_retrieval_is_average_precision():
    features, labels = clusters(12, 1.2)
    labels[0] = 7                       # alone in its class: it asks nothing, but may be found
    found = retrieval(features, labels)
    vectors = normed(features).numpy()
    precisions, firsts = [], []
    for own in range(1, len(labels)):
        cosines = vectors @ vectors[own]
        others = np.arange(len(labels)) != own
        precisions.append(average_precision_score(labels[others] == labels[own], cosines[others]))
        firsts.append(labels[others][np.argmax(cosines[others])] == labels[own])
    assert found["map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found["recall@1"]["value"] == pytest.approx(np.mean(firsts))
    assert found["queries"] == len(labels) - 1
    assert found["recall@1"]["value"] <= found["recall@5"]["value"] <= found["recall@10"]["value"]


def test_what_cannot_be_asked_says_so():
    features, _ = clusters(3, 1.0)
    with pytest.raises(RecipeError, match="two images at least"):
        retrieval(features, np.arange(len(features)))
    with pytest.raises(RecipeError, match="few-shot wants 5"):
        few_shot(features, np.repeat(np.arange(4), 3), features, np.repeat(np.arange(4), 3), shots=(5,))
    with pytest.raises(RecipeError, match="two classes"):
        linear(features, np.zeros(len(features), np.int64), features, np.zeros(len(features), np.int64))
