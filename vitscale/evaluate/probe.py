"""What a simple classifier makes of frozen features: a linear probe, and few images of each class."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from vitscale.errors import RecipeError
from vitscale.evaluate.metrics import share

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)    # C of scikit-learn: one over the regularisation
RIDGE, BIAS = 1024.0, 100.0                         # of few-shot regression: its L2, and a constant input whose weight is all but free


def linear(train: Features, train_labels: Labels, val: Features, val_labels: Labels, seed: int = 0, max_iter: int = 500) -> dict[str, Any]:
    """Logistic regression on standardised features (Radford et al. 2021, CLIP, section 3.2): its strength is chosen on a tenth of the
    training samples, then it is fitted to all of them and judged once."""
    scaler = StandardScaler().fit(train)
    inputs, judged = scaler.transform(train), scaler.transform(val)
    if len(np.unique(train_labels)) < 2:
        raise RecipeError("a linear probe wants training samples of two classes at least")
    counts = np.bincount(train_labels)
    stratify = train_labels if counts[counts > 0].min() > 1 and len(train) // 10 >= (counts > 0).sum() else None
    fit, held, fit_labels, held_labels = train_test_split(inputs, train_labels, test_size=0.1, random_state=seed, stratify=stratify)

    def fitted(strength: float, given: Features, labels: Labels) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=max_iter).fit(given, labels)

    best = max(STRENGTHS, key=lambda strength: fitted(strength, fit, fit_labels).score(held, held_labels))
    model = fitted(best, inputs, train_labels)
    return {"top1": share(model.predict(judged) == val_labels), "strength": best, "converged": bool((model.n_iter_ < max_iter).all())}


def few_shot(train: Features, train_labels: Labels, val: Features, val_labels: Labels, shots: tuple[int, ...] = (1, 5, 10, 25),
             seeds: int = 5, ridge: float = RIDGE) -> dict[str, Any]:
    """Least squares from k images of each class to targets of +1 and -1 (Dosovitskiy et al. 2021, section 4), in closed form; the mean and
    the standard deviation over `seeds` choices of the images.  Shots that a class does not have are left out."""
    available = np.bincount(train_labels)
    present = np.flatnonzero(available)
    found: dict[str, Any] = {}
    for shot in shots:
        if shot > available[present].min():
            continue
        scores = []
        for seed in range(seeds):
            draw = np.random.default_rng((seed, shot))
            chosen = np.concatenate([draw.permutation(np.flatnonzero(train_labels == number))[:shot] for number in present])
            scores.append(float((present[_ridge(train[chosen], train_labels[chosen], present, val, ridge)] == val_labels).mean()))
        found[str(shot)] = {"top1": float(np.mean(scores)), "deviation": float(np.std(scores)), "seeds": seeds}
    if not found:
        raise RecipeError(f"few-shot wants {min(shots)} training samples of each class at least")
    return found


def _ridge(inputs: Features, labels: Labels, present: NDArray[np.intp], judged: Features, ridge: float) -> NDArray[np.intp]:
    """The place in `present` that wins, for each judged image; features standardised by the chosen ones.  The smaller system is solved."""
    centre, spread = inputs.mean(axis=0, dtype=np.float64), inputs.std(axis=0, dtype=np.float64) + 1e-5
    x, z = (np.concatenate([(values - centre) / spread, np.full((len(values), 1), BIAS)], axis=1) for values in (inputs, judged))
    y = np.where(labels[:, None] == present[None], 1.0, -1.0)
    if len(x) < x.shape[1]:
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y)
    else:
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    winner: NDArray[np.intp] = (z @ weights).argmax(axis=1)
    return winner
