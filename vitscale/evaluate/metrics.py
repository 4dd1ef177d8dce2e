"""Numbers that say how good answers are, each with what chance leaves open.  Pure: arrays in, numbers out."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Z_95 = 1.959963984540054        # the normal distribution's 97.5 % point
BINS = 15                       # of calibration: as in Guo et al. 2017


def interval(right: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which stays inside 0..1 however small the count."""
    if count == 0:
        return 0.0, 1.0
    share, over = right / count, z * z / count
    middle = (share + over / 2) / (1 + over)
    half = z / (1 + over) * math.sqrt(share * (1 - share) / count + over / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share(right: NDArray[np.bool_]) -> dict[str, Any]:
    """A share with its interval and what it is a share of."""
    count, hits = len(right), int(right.sum())
    return {"value": hits / count if count else math.nan, "interval": list(interval(hits, count)), "count": count}


def hits(scores: Floats, labels: Ints, k: int) -> NDArray[np.bool_]:
    """scores (n, C), labels (n,) -> whether the label is among the k best (n,); of equal scores the lower class counts as better."""
    own = scores[np.arange(len(labels)), labels][:, None]
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    found: NDArray[np.bool_] = ahead.sum(axis=1) < k
    return found


def by_class(right: NDArray[np.bool_], labels: Ints, classes: int) -> list[dict[str, Any]]:
    """The share of right answers for each class; value NaN where a class has no image."""
    return [{"class": number, **share(right[labels == number])} for number in range(classes)]


def confusions(predicted: Ints, labels: Ints, most: int = 10) -> list[tuple[int, int, int]]:
    """(class, what it was taken for, how often), the most frequent first."""
    wrong = predicted != labels
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """(n, C) -> probabilities (n, C)."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return found


def calibration(probabilities: Floats, labels: Ints, bins: int = BINS) -> dict[str, Any]:
    """Does a confidence of 0.8 mean 80 % right?  Expected and largest calibration error (Guo et al. 2017, section 2), the negative log
    likelihood, Brier's score (1950), and the bins behind them: images, mean confidence, accuracy."""
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(np.int64), bins - 1)
    rows, gaps = [], []
    for number in range(bins):
        inside = place == number
        if not inside.any():
            continue
        confidence, accuracy, count = float(sure[inside].mean()), float(right[inside].mean()), int(inside.sum())
        rows.append({"images": count, "confidence": confidence, "accuracy": accuracy})
        gaps.append((count, abs(confidence - accuracy)))
    own = probabilities[np.arange(len(labels)), labels]
    brier = (probabilities**2).sum(axis=1) - 2 * own + 1
    return {"expected_error": sum(count * gap for count, gap in gaps) / max(len(labels), 1),
            "largest_error": max((gap for _, gap in gaps), default=0.0),
            "negative_log_likelihood": float(-np.log(np.maximum(own, 1e-300)).mean()), "brier": float(brier.mean()), "bins": rows}


def accuracy(logits: Floats, labels: Ints) -> dict[str, Any]:
    """All that is said of a classifier on one set."""
    right = hits(logits, labels, 1)
    found: dict[str, Any] = {"top1": share(right)}
    if logits.shape[1] > 5:
        found["top5"] = share(hits(logits, labels, 5))
    classes = by_class(right, labels, logits.shape[1])
    present = [row["value"] for row in classes if row["count"]]
    return found | {"mean_of_classes": float(np.mean(present)) if present else math.nan, "classes": classes,
                    "confusions": confusions(logits.argmax(axis=1), labels), "calibration": calibration(softmax(logits), labels)}


def several_labels(logits: Floats, targets: Ints) -> dict[str, Any]:
    """Of samples with any number of labels: logits (n, C), targets (n, C) of 0 and 1.

    Mean average precision over the classes that some sample has (Everingham et al. 2010, without interpolation: scikit-learn's); how often
    the likeliest class, or one of the five likeliest, is among the labels, a sample without labels being a miss; and F1 of all answers
    above a probability of 1/2 (the "overall F1" of the field).
    """
    from sklearn.metrics import average_precision_score

    answers = logits > 0
    order = np.argsort(-logits, axis=1, kind="stable")

    def among(k: int) -> dict[str, Any]:
        return share(np.take_along_axis(targets, order[:, :k], axis=1).max(axis=1) > 0)

    def precision(number: int) -> float:
        own = targets[:, number]
        return float(average_precision_score(own, logits[:, number])) if own.any() else math.nan

    classes = [{"class": number, "value": precision(number), "count": int(targets[:, number].sum())} for number in range(logits.shape[1])]
    present = [row["value"] for row in classes if row["count"]]
    return {
        "map": float(np.mean(present)) if present else math.nan, "hits1": among(1), **({"hits5": among(5)} if logits.shape[1] > 5 else {}),
        # not scikit-learn's: of a single class it counts the samples without it as right answers too
        "f1": float(2 * (answers & (targets > 0)).sum() / max(answers.sum() + targets.sum(), 1)), "classes": classes,
    }


# Top-1 errors of AlexNet by corruption, against which mCE is measured (Hendrycks & Dietterich 2019, and the table published with its code).
ALEXNET = {"gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880, "glass_blur": 0.826268,
           "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
           "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500}


def corrupted(errors: dict[tuple[str, str], float]) -> dict[str, Any]:
    """Top-1 errors by (corruption, severity) -> means by either, and mCE where all of ImageNet-C's corruptions are there."""
    def means(place: int) -> dict[str, float]:
        names = dict.fromkeys(key[place] for key in errors)
        return {name: float(np.mean([error for key, error in errors.items() if key[place] == name])) for name in names}

    by_name = means(0)
    found: dict[str, Any] = {"mean_error": float(np.mean(list(errors.values()))), "by_corruption": by_name, "by_severity": means(1)}
    if by_name.keys() >= ALEXNET.keys():
        found["mce"] = float(np.mean([by_name[name] / base for name, base in ALEXNET.items()]))
    return found
