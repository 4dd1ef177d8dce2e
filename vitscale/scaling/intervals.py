"""How sure a fit is: draws of a bootstrap by run, profiles of the likelihood, and what drives it.  Deterministic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from vitscale.scaling.fit import SEED, Fit, logs_of, target_of
from vitscale.scaling.solve import Array, Constraint, solve

DRAWS = 400
LEVEL = 0.95
Quantity = Callable[[Any], Any]  # inner thetas (..., P), real or complex -> (...)


@dataclass(frozen=True)
class Draws:
    """Refits (S, P), inner, of the bootstrap."""

    fit: Fit
    theta: Array

    def interval(self, of: Quantity, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of a quantity."""
        values = np.real(of(self.theta))
        values = values[np.isfinite(values)]
        if not len(values):
            return float("nan"), float("nan")
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def deviation(self, of: Quantity) -> float:
        """The standard deviation of a quantity over the draws."""
        values = np.real(of(self.theta))
        with np.errstate(over="ignore"):        # of what is not identified
            return float(np.std(values[np.isfinite(values)], ddof=1))


def bootstrap(fit: Fit, draws: int = DRAWS, seed: int = SEED) -> Draws:
    """Refit with random weights for the runs: exponential ones of mean 1 (the Bayesian bootstrap, Rubin 1981).

    All points of a run have one weight, since they share its noise.  No run is ever quite absent, so that a draw is never too poor for the
    form, as it can be when runs are drawn with replacement.  Deviations from the fit are stretched by sqrt(runs / (runs - parameters)):
    residuals are smaller than errors by so much (Davison & Hinkley 1997, section 6.2).
    """
    points, form = fit.points, fit.form
    names = sorted(set(points.run))
    member = np.array([names.index(run) for run in points.run])
    rng = np.random.default_rng(seed + 1)
    weight = rng.exponential(size=(draws, len(names)))
    weight /= weight.mean(axis=1, keepdims=True)
    logs, target = logs_of(form, points.x, fit.centre), target_of(form, points)
    found = solve(lambda theta: form.predict(theta, logs, fit.centre), target, np.tile(fit.theta, (draws, 1)), fit.delta,
                  weights=weight[:, member], free=fit.free, iterations=60)
    good = np.isfinite(found.cost)
    params = int(fit.free.sum())
    stretch = np.sqrt(len(names) / max(len(names) - params, 1))
    return Draws(fit, fit.theta + stretch * (found.theta[good] - fit.theta))


def outer_of(fit: Fit, name: str) -> Quantity:
    """A parameter as people write it."""
    index = fit.form.params.index(name)
    return lambda theta: fit.form.outer(theta, fit.centre)[..., index]


def log_prediction(fit: Fit, x: Mapping[str, float]) -> Quantity:
    """log of y (link identity: the metric) at one place."""
    logs = logs_of(fit.form, {name: np.array([value]) for name, value in x.items()}, fit.centre)
    return lambda theta: fit.form.predict(theta, logs, fit.centre)[..., 0]


@dataclass(frozen=True)
class LikelihoodProfile:
    """Test statistics, 1 where the limit is, along a grid of values of one quantity."""

    values: Array
    statistic: Array
    low: float | None  # None: no end within the grid
    high: float | None

    @property
    def identified(self) -> bool:
        return self.low is not None and self.high is not None


def profile(fit: Fit, draws: Draws, of: Quantity, around: float, reach: float, level: float = LEVEL) -> LikelihoodProfile:
    """The values of a quantity at which the best constrained fit is not significantly worse.

    `around` is its fitted value; the ends are sought from a quarter of `reach` to eight times it, to either side.
    The statistic is 2 (S0 - S) mean(psi') / mean(psi^2), chi-squared for M-estimates of regression (Ronchetti 1982; Huber & Ronchetti
    2009, section 7.10), with psi' smoothed over the spread of the residuals, against Student's t squared with n - P degrees of freedom.
    """
    form, target = fit.form, target_of(fit.form, fit.points)
    logs = logs_of(form, fit.points.x, fit.centre)
    free = fit.free
    freedom = max(len(target) - int(free.sum()), 1)
    limit = float(student.ppf((1 + level) / 2, freedom) ** 2)
    factor = _likelihood(fit, freedom)
    if factor is None:  # without noise there is nothing to be unsure of
        return LikelihoodProfile(np.array([around]), np.zeros(1), around, around)

    # Begin where the draws say that the other parameters go with this one.
    drawn = np.real(of(draws.theta)) - around
    along = np.where(free, (drawn @ (draws.theta - fit.theta)) / max(float(drawn @ drawn), 1e-300), 0.0)
    steps = reach * np.array([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0])
    values = around + np.concatenate([-steps[::-1], steps])
    starts = fit.theta + (values - around)[:, None] * along
    stiffness = 1e6 * fit.delta * max(fit.scale, 1e-12) / max(reach, 1e-12) ** 2
    held = solve(lambda theta: form.predict(theta, logs, fit.centre), target, starts, fit.delta, free=free, iterations=60,
                 constraint=Constraint(of, values, stiffness))
    heights = np.where(np.isfinite(held.cost), np.maximum(2 * (held.cost - fit.cost) * factor / limit, 0.0), np.inf)
    grid, heights = np.insert(values, len(steps), around), np.insert(heights, len(steps), 0.0)
    middle = len(steps)
    ends: list[float | None] = []
    for side in (-1, 1):
        end = None
        for i in range(middle + side, -1 if side < 0 else len(grid), side):
            if heights[i] >= 1:  # near to a parabola: its root is near to a straight line
                low, high = np.sqrt(heights[i - side]), np.sqrt(min(heights[i], 1e12))
                end = float(grid[i - side] + (grid[i] - grid[i - side]) * (1 - low) / max(high - low, 1e-12))
                break
        ends.append(end)
    return LikelihoodProfile(grid, heights, ends[0], ends[1])


def _likelihood(fit: Fit, freedom: int) -> float | None:
    """mean(psi') / mean(psi^2), or None when the residuals are rounding."""
    residual, delta = fit.residuals, fit.delta
    count = len(residual)
    if fit.scale < 1e-9:
        return None
    score = np.mean(np.clip(residual, -delta, delta) ** 2) * count / freedom
    width = max(delta, 1.06 * fit.scale * count**-0.2)
    slope = min(1.0, delta / width) * np.mean(np.abs(residual) <= width)
    return float(slope / score) if score > 0 and slope > 0 else None


def influence(fit: Fit, draws: Draws) -> list[dict[str, Any]]:
    """Runs whose absence moves a parameter by more than two of its standard deviations, the worst first."""
    points, form = fit.points, fit.form
    names = sorted(set(points.run))
    member = np.array([names.index(run) for run in points.run])
    weights = np.array([member != number for number in range(len(names))], dtype=float)
    logs, target = logs_of(form, points.x, fit.centre), target_of(form, points)
    found = solve(lambda theta: form.predict(theta, logs, fit.centre), target, np.tile(fit.theta, (len(names), 1)), fit.delta,
                  weights=weights, free=fit.free, iterations=60)
    deviation = np.maximum(np.std(draws.theta, axis=0, ddof=1), 1e-9 + 1e-6 * np.abs(fit.theta))
    moved = np.where(fit.free, np.abs(found.theta - fit.theta) / deviation, 0.0)
    told = []
    for number in np.argsort(-moved.max(axis=1), kind="stable"):
        worst = int(np.argmax(moved[number]))
        if moved[number, worst] > 2 and fit.scale > 1e-9:
            told.append({"run": names[number], "parameter": form.params[worst], "deviations": float(moved[number, worst])})
    return told
