"""What a form of a scaling law is, and what forms are made of.  Pure numpy.

A law is fitted in *inner* coordinates: variables are divided by their geometric mean, positive parameters are logarithms.  So numbers of
1e9 and 1e-3 are solved for alike, and A does not run away along N^alpha.  `outer` gives the numbers that people write down.
Every function of the parameters takes complex numbers too, from which its exact derivatives follow (solve.jacobian).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitscale.scaling.solve import Array

Logs = Mapping[str, Array]  # variable -> log(x / its centre), (n,)
Centre = Mapping[str, float]  # variable -> log of its geometric mean
Column = Any  # (S, 1) real or complex


@dataclass(frozen=True)
class Form:
    """One law.  Inner and outer parameters stand in the order of `params`."""

    name: str
    text: str  # the formula
    source: str
    variables: tuple[str, ...]  # n: size of the model, d: samples seen, u: unique samples, x: whatever it is one of, t: compute
    params: tuple[str, ...]
    positive: frozenset[str]  # whose inner coordinate is the logarithm
    log_value: Callable[[Sequence[Column], Logs, Centre], Any]  # (S, n): log of the prediction, or with link identity the prediction
    shift: Callable[[dict[str, Any], Centre], dict[str, Any]]  # inner, logarithms undone -> outer
    guess: Callable[[Logs, Array, Centre, np.random.Generator, int], Array]  # (S, P) starts from logs, y
    link: str = "log"
    delta: float | None = None  # Huber's, as its source has it; None: 1.345 robust standard deviations

    def canonical(self, theta: Array) -> Array:
        """theta (P,) with the breaks in the order of their places, where it has any: one law, one set of numbers."""
        places = [self.params.index(name) for name in self.params if name.startswith("d_")]
        if not self.name.startswith("broken") or len(places) < 2:
            return theta
        ordered = theta.copy()
        for to, start in enumerate(sorted(places, key=lambda place: theta[place])):
            ordered[places[to] - 1 : places[to] + 2] = theta[start - 1 : start + 2]
        return ordered

    def predict(self, theta: Any, logs: Logs, centre: Centre) -> Any:
        """theta (..., P), real or complex -> (..., n) in the space of the residuals."""
        with np.errstate(all="ignore"):  # a start may lead anywhere; what is not finite costs infinitely much
            return self.log_value([theta[..., index, None] for index in range(len(self.params))], logs, centre)

    def outer(self, theta: Any, centre: Centre) -> Any:
        """Inner (..., P) -> outer (..., P)."""
        with np.errstate(all="ignore"):
            inner = {
                name: np.exp(theta[..., index]) if name in self.positive else theta[..., index] for index, name in enumerate(self.params)}
            shifted = self.shift(inner, centre)
        return np.stack([shifted[name] for name in self.params], axis=-1)


def log_sum(*terms: Any) -> Any:
    """log of the sum of exponentials; complex numbers too."""
    top = np.real(terms[0])
    for term in terms[1:]:
        top = np.maximum(top, np.real(term))
    top = np.where(np.isfinite(top), top, 0.0)
    return top + np.log(sum(np.exp(term - top) for term in terms))


def linear_part(columns: Array, y: Array) -> Array:
    """columns (S, n, k) -> the (S, k) that fit y best relatively; what comes out negative is set to a thousandth of y's size."""
    weighted = columns / y[None, :, None]
    gram = np.einsum("snk,snl->skl", weighted, weighted)
    size = np.sqrt(np.maximum(np.einsum("skk->sk", gram), 1e-300))
    gram = gram / (size[:, :, None] * size[:, None, :]) + 1e-12 * np.eye(columns.shape[2])
    found = np.linalg.solve(gram, (weighted.sum(axis=1) / size)[:, :, None])[:, :, 0] / size
    least = 1e-3 * np.median(y) / np.maximum(np.abs(columns).mean(axis=1), 1e-300)
    return np.maximum(found, least)


def even_spread(rng: np.random.Generator, count: int, *ranges: tuple[float, float]) -> Array:
    """(count, k) points that fill a box evenly (a Latin hypercube), the middle of the box first."""
    cells = np.stack([rng.permutation(count) for _ in ranges], axis=1)
    unit = (cells + rng.random((count, len(ranges)))) / count
    unit[0] = 0.5
    low, high = np.array([one[0] for one in ranges]), np.array([one[1] for one in ranges])
    return low + unit * (high - low)
