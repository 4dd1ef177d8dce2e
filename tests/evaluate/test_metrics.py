"""Shares with their intervals, top-k with ties, calibration, corruptions: against closed forms and other implementations."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from vitscale.evaluate.metrics import (
    ALEXNET,
    accuracy,
    by_class,
    calibration,
    confusions,
    corrupted,
    hits,
    interval,
    several_labels,
    softmax,
)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (7, 10), (350, 359), (1, 10_000)])
def test_the_interval_is_wilsons(right, count):
    theirs = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert interval(right, count) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_nothing_seen_says_nothing():
    assert interval(0, 0) == (0.0, 1.0)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = [low <= 0.9 <= high for low, high in (interval(right, 200) for right in draw.binomial(200, 0.9, 4000))]
    assert 0.93 < np.mean(inside) < 0.97


def test_hits_at_k_and_ties():
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for label in range(4):
        labels = np.array([label, label])
        for k in (1, 2, 3, 4):
            assert hits(scores, labels, k).tolist() == [label < k, label < k]      # of equals the lower counts as better, as argmax has it


def test_accuracy_by_class_and_what_is_mistaken():
    labels = np.array([0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 1, 1, 1, 0, 3])
    logits = np.eye(4)[predicted].astype(np.float32)
    found = accuracy(logits, labels)
    assert found["top1"]["value"] == 0.5
    assert found["mean_of_classes"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert math.isnan(by_class(predicted == labels, labels, 4)[2]["value"])
    assert confusions(predicted, labels) == [(0, 1, 2), (1, 0, 1)]
    assert "top5" not in found


def test_several_labels_a_sample():
    logits = np.array([[3.0, 2.0, -1.0, -2.0], [1.0, -1.0, 2.0, -3.0], [-1.0, -2.0, -3.0, -4.0], [0.5, 4.0, -1.0, -5.0]])
    targets = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    found = several_labels(logits, targets)
    # class 0: 3 (right), 1 (wrong), 0.5 (right), so (1/1 + 2/3) / 2; class 1: 4 (wrong), 2 (right), so 1/2; class 2: 1; class 3: none
    assert [row["value"] for row in found["classes"][:3]] == [pytest.approx(5 / 6), pytest.approx(0.5), pytest.approx(1)]
    assert math.isnan(found["classes"][3]["value"])
    assert [row["count"] for row in found["classes"]] == [2, 1, 1, 0]
    assert found["map"] == pytest.approx((5 / 6 + 1 / 2 + 1) / 3)
    assert found["hits1"]["value"] == 2 / 4         # of the third, which has no label, no answer is right
    assert "hits5" not in found
    assert found["f1"] == pytest.approx(2 * 4 / (6 + 4))        # six answers above 1/2, four of them among the four labels


def test_f1_of_a_single_class_counts_what_is_there():
    """Not the samples that lack it and are told so: else a model that says no to all of them would be good."""
    targets = np.array([[1], [1], [0], [0], [0], [0]])
    assert several_labels(np.array([[1.0], [-1.0], [-1.0], [-1.0], [-1.0], [2.0]]), targets)["f1"] == pytest.approx(2 / (2 + 2))
    assert several_labels(np.full((6, 1), -1.0), targets)["f1"] == 0
    assert several_labels(np.full((6, 1), -1.0), 0 * targets)["f1"] == 0


def test_a_calibrated_classifier_has_no_error_and_an_overconfident_one_has_its_gap():
    draw = np.random.default_rng(1)
    sure = draw.uniform(0.5, 1, 20_000)
    labels = (draw.random(20_000) > sure).astype(np.int64)
    probabilities = np.stack([sure, 1 - sure], axis=1)
    assert calibration(probabilities, labels)["expected_error"] < 0.015
    always = np.tile([0.99, 0.01], (1000, 1))
    found = calibration(always, np.arange(1000) % 2)
    assert found["expected_error"] == found["largest_error"] == pytest.approx(0.49)
    assert found["negative_log_likelihood"] == pytest.approx(-(math.log(0.99) + math.log(0.01)) / 2)
    assert found["brier"] == pytest.approx((2 * 0.01**2 + 2 * 0.99**2) / 2)
    assert sum(row["images"] for row in found["bins"]) == 1000


def test_softmax_of_large_numbers():
    assert softmax(np.array([[1000.0, 1000.0, -1000.0]])).tolist() == [[0.5, 0.5, 0.0]]


def test_corruptions_are_averaged_and_held_against_alexnet():
    errors = {(name, str(level)): base / 2 for name, base in ALEXNET.items() for level in (1, 2, 3)}
    found = corrupted(errors)
    assert found["mce"] == pytest.approx(0.5)
    assert found["by_corruption"]["fog"] == pytest.approx(ALEXNET["fog"] / 2)
    assert set(found["by_severity"]) == {"1", "2", "3"}
    del errors["fog", "1"], errors["fog", "2"], errors["fog", "3"]
    assert "mce" not in corrupted(errors)
