"""Robust least squares for many starts, weights or constraints at once.  Pure numpy.

What is minimised is the *sum* of Huber's function (Huber 1964) over the residuals.  An average of losses near 1e-6 is below any default
tolerance, so that an optimizer stops where it began (Besiroglu et al. 2024, section 3); a sum, solved to the limits of arithmetic, is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[NDArray[np.complexfloating] | Array], NDArray[np.complexfloating] | Array]

STEP = 1e-30  # of the complex step: nothing is subtracted, so it can be as small as it likes (Squire & Trapp 1998)
BEND = 0.1  # of a step, after which its bend is looked at
_ROOM = 3_000_000  # complex numbers of a Jacobian held at once


@dataclass(frozen=True)
class Solutions:
    """One row for each start."""

    theta: Array  # (S, P)
    cost: Array  # (S,): the sum of Huber's function, constraints left out
    converged: NDArray[np.bool_]


@dataclass(frozen=True)
class Constraint:
    """Hold a scalar function of the parameters at a value, a row each: `of` maps (..., P) to (...)."""

    of: Function
    values: Array  # (S,)
    stiffness: float = 1e4


def huber(residuals: Array, delta: float | Array) -> Array:
    """r^2 / 2 up to `delta`, a straight line beyond (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def jacobian(function: Function, theta: Array) -> tuple[Array, Array]:
    """Values (S, n) and derivatives (S, P, n) at theta (S, P), by complex steps: exact to rounding.

    The function is called once with (S, P, P), of which the middle axis says which parameter has moved.
    """
    params = theta.shape[1]
    values: Any = function(theta[:, None, :] + 1j * STEP * np.eye(params))
    return np.real(values[:, 0]), np.imag(values) / STEP


def solve(predict: Function, target: Array, starts: Array, delta: float | Array, weights: Array | None = None,
          constraint: Constraint | None = None, free: NDArray[np.bool_] | None = None, iterations: int = 150) -> Solutions:
    """Minimise sum_i w_i huber(target_i - predict_i(theta)) from each start by damped Gauss-Newton steps.

    predict maps theta (..., P), real or complex, to (..., n); target (n,) or (S, n); starts (S, P); weights (n,) or (S, n).  `delta` is one
    number, or one for each row.  `free` (P,): parameters that may move.  Rows do not know of each other.
    """
    rows, params = starts.shape
    points = target.shape[-1]
    size = max(1, _ROOM // max(1, params * points))
    target = np.broadcast_to(target, (rows, points))
    weights = np.broadcast_to(np.ones(points) if weights is None else weights, (rows, points))
    deltas = np.broadcast_to(np.asarray(delta, dtype=float), (rows,))
    movable = np.flatnonzero(np.ones(params, bool) if free is None else free)
    theta, cost, done = starts.astype(float).copy(), np.full(rows, np.inf), np.zeros(rows, bool)
    for first in range(0, rows, size):
        part = slice(first, min(first + size, rows))
        values = None if constraint is None else constraint.values[part]
        theta[part], cost[part], done[part] = _solve(
            predict, target[part], theta[part], deltas[part, None], weights[part], constraint, values, movable, iterations)
    return Solutions(theta, cost, done)


def _solve(predict: Function, target: Array, theta: Array, delta: Array, weights: Array, constraint: Constraint | None,
           values: Array | None, movable: NDArray[np.intp], iterations: int) -> tuple[Array, Array, NDArray[np.bool_]]:
    """One block of rows."""
    rows = len(theta)
    theta, damping = theta.copy(), np.full(rows, 1e-3)
    alive, done = np.arange(rows), np.zeros(rows, bool)

    def total(at: Array, which: NDArray[np.intp]) -> Array:
        with np.errstate(all="ignore"):
            found = np.sum(weights[which] * huber(target[which] - np.real(predict(at)), delta[which]), axis=1)
            if constraint is not None and values is not None:
                found = found + 0.5 * _stiff(constraint, delta[which]) * (np.real(constraint.of(at)) - values[which]) ** 2
        return np.where(np.isfinite(found), found, np.inf)

    cost = total(theta, alive)
    alive = alive[np.isfinite(cost)]
    stalled = np.zeros(rows, int)
    for _ in range(iterations):
        if not len(alive):
            break
        with np.errstate(all="ignore"):
            best, chosen = np.full(len(alive), np.inf), theta[alive].copy()
            for step in _steps(predict, target[alive], theta[alive], delta[alive], weights[alive], constraint,
                               None if values is None else values[alive], movable, damping[alive]):
                tried = _moved(theta[alive], movable, step)
                reached = total(tried, alive)
                better = reached < best
                best[better], chosen[better] = reached[better], tried[better]
        before = cost[alive]
        gained = best < before
        theta[alive[gained]], cost[alive[gained]] = chosen[gained], best[gained]
        damping[alive] = np.where(gained, np.maximum(damping[alive] * 0.2, 1e-14), damping[alive] * 8)
        # What gains no more in several steps is done, also if it still moves along a valley that the points cannot see.
        small = gained & (before - best <= 1e-6 * before)
        stalled[alive] = np.where(small, stalled[alive] + 1, np.where(gained, 0, stalled[alive]))
        finished = (stalled[alive] >= 4) | (damping[alive] > 1e7) | (cost[alive] < 1e-30)
        done[alive[finished]] = True
        alive = alive[~finished]
    if constraint is not None:  # what the rows cost without it
        with np.errstate(all="ignore"):
            cost = np.sum(weights * huber(target - np.real(predict(theta)), delta), axis=1)
    return theta, cost, done


def _steps(predict: Function, target: Array, theta: Array, limit: Array, weights: Array, constraint: Constraint | None,
           values: Array | None, movable: NDArray[np.intp], damping: Array) -> list[Array]:
    """Three steps for each row to try; `limit` is Huber's delta."""
    predicted, slopes = jacobian(predict, theta)
    slopes = np.nan_to_num(slopes[:, movable], nan=0.0, posinf=0.0, neginf=0.0)
    residual = target - predicted
    # Two curvatures: that of a parabola above the cost (always down), and the cost's own (fast near the end).
    softened = weights * limit / np.maximum(np.abs(residual), limit)
    slope = np.einsum("spn,sn->sp", slopes, softened * residual)
    inside = weights * (np.abs(residual) <= limit)
    curvatures = [np.einsum("spn,sn,sqn->spq", slopes, w, slopes, optimize=True) for w in (softened, inside)]
    if constraint is not None and values is not None:
        level, tilt = jacobian(lambda at: constraint.of(at)[..., None], theta)
        stiff, tilt = _stiff(constraint, limit), tilt[:, movable, 0]
        slope = slope - (stiff * (level[:, 0] - values))[:, None] * tilt
        curvatures = [one + stiff[:, None, None] * tilt[:, :, None] * tilt[:, None, :] for one in curvatures]
    scale = np.maximum(np.einsum("spp->sp", curvatures[0]), 1e-30)
    steps = [_damped_step(curvature, damping, scale, slope) for curvature in curvatures]
    # In a valley that bends a straight step soon meets its side; the third one follows it (Transtrum & Sethna 2012, section 4).
    ahead = np.real(predict(_moved(theta, movable, BEND * steps[0]))) - predicted
    bent = ahead - BEND * np.einsum("spn,sp->sn", slopes, steps[0])
    back = _damped_step(curvatures[0], damping, scale, np.einsum("spn,sn->sp", slopes, softened * bent))
    return [*steps, steps[0] - back / BEND**2]


def _damped_step(curvature: Array, damping: Array, scale: Array, slope: Array) -> Array:
    """curvature (S, P, P), damping (S,), scale and slope (S, P) -> the step (S, P) of Levenberg and Marquardt."""
    eye, root = np.eye(slope.shape[1]), np.sqrt(scale)
    damped = curvature + (damping[:, None] * scale)[:, :, None] * eye
    # Scaled to a unit diagonal: parameters of any size are solved for equally well.
    unit = damped / (root[:, :, None] * root[:, None, :]) + 1e-15 * eye
    return np.nan_to_num(np.linalg.solve(unit, (slope / root)[:, :, None])[:, :, 0] / root)


def _moved(theta: Array, movable: NDArray[np.intp], step: Array) -> Array:
    """theta (S, P) after a step (S, movable), of which no part is longer than 5."""
    theta = theta.copy()
    theta[:, movable] += np.clip(step, -5.0, 5.0)
    return theta


def _stiff(constraint: Constraint, delta: Array) -> Array:
    return np.full(len(delta), constraint.stiffness)
