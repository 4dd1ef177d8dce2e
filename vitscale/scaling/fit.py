"""Fit one form to points: starts, the best of them, and what may be wrong with it.  Deterministic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from vitscale.errors import DataError
from vitscale.scaling.form import Form
from vitscale.scaling.points import Points, check_points
from vitscale.scaling.solve import Array, huber, jacobian, solve

STARTS = 192
EARLY = ((10, 64), (30, 32))  # steps that all starts take, and how many of the best go on; the last go on to the end
OUTLIER = 5.0  # robust standard deviations from the law: such points are named, and kept unless the caller leaves them out
SEED = 20220329  # of the starts and the draws; nothing else is random


@dataclass(frozen=True)
class Fit:
    """A law with its numbers."""

    form: Form
    points: Points
    centre: Mapping[str, float]
    theta: Array  # (P,), inner
    delta: float
    cost: float
    scale: float  # robust standard deviation of the residuals
    starts: Mapping[str, Any]  # how many there were, and how many ended in the same place
    fixed: Mapping[str, float]  # outer values that were given, not fitted
    outliers: tuple[int, ...]

    @property
    def params(self) -> dict[str, float]:
        """The numbers as people write them."""
        return dict(zip(self.form.params, self.form.outer(self.theta[None], self.centre)[0].tolist(), strict=True))

    @property
    def free(self) -> np.ndarray:
        return np.array([name not in self.fixed for name in self.form.params])

    @property
    def residuals(self) -> Array:
        """Observed minus fitted, in logarithms (with link identity: in the metric)."""
        return (target_of(self.form, self.points)
                - self.form.predict(self.theta[None], logs_of(self.form, self.points.x, self.centre), self.centre)[0])

    def predict(self, x: Mapping[str, Array], theta: Array | None = None) -> Array:
        """The fitted quantity y at `x` (n,) -> (n,), or for thetas (S, P) -> (S, n)."""
        found = self.form.predict(self.theta[None] if theta is None else theta, logs_of(self.form, x, self.centre), self.centre)
        if self.form.link == "identity":
            bound = self.points.bound
            found = found if bound is None else bound - found
        else:
            found = np.exp(found)
        return found[0] if theta is None else found


def logs_of(form: Form, x: Mapping[str, Array], centre: Mapping[str, float]) -> dict[str, Array]:
    """log(x / centre) of the form's variables."""
    return {name: np.log(np.asarray(x[name], dtype=float)) - centre[name] for name in form.variables}


def target_of(form: Form, points: Points) -> Array:
    """What the residuals are taken of: log y, or for link identity the metric itself."""
    return points.told(points.y) if form.link == "identity" else np.log(points.y)


def fit(form: Form, points: Points, *, delta: float | None = None, fixed: Mapping[str, float] | None = None, starts: int = STARTS,
        seed: int = SEED, refits: int = 3) -> Fit:
    """The best of many starts.  `delta` of Huber's function: None as the form's source has it, else 1.345 robust standard deviations, at
    which 95 % of the efficiency of least squares is kept for normal errors (Huber 1964; Holland & Welsch 1977).

    `fixed` gives outer values of parameters that are known.  Raises DataError when the points cannot carry the form.
    """
    fixed = dict(fixed or {})
    centre = _checked_centre(form, points, fixed)
    logs, target = logs_of(form, points.x, centre), target_of(form, points)

    def predict(theta: Any) -> Any:
        return form.predict(theta, logs, centre)

    rng = np.random.default_rng(seed)
    guesses = form.guess(logs, points.y if form.link == "log" else target, centre, rng, starts)
    free = np.array([name not in fixed for name in form.params])
    for index, name in enumerate(form.params):
        if name in fixed:
            guesses[:, index] = _inner(form, name, fixed[name], fixed)
    given = delta if delta is not None else form.delta
    first = 1.345 * max(_spread_of(target), 1e-12)
    kept = guesses
    for steps, most in EARLY:
        early = solve(predict, target, kept, given or first, free=free, iterations=steps)
        kept = early.theta[np.argsort(early.cost, kind="stable")[: max(starts * most // STARTS, 4)]]
    found = solve(predict, target, kept, given or first, free=free)
    for _ in range(0 if given else refits):  # the scale of the residuals is known only once there is a fit
        best = found.theta[np.argmin(found.cost)]
        scale = max(_spread_of(target - predict(best[None])[0], len(target) - free.sum()), 1e-9)
        if abs(1.345 * scale / first - 1) < 1e-3:
            break
        first = 1.345 * scale
        found = solve(predict, target, found.theta[np.argsort(found.cost, kind="stable")], first, free=free)
    used = given or first
    order = np.argsort(found.cost, kind="stable")
    if not np.isfinite(found.cost[order[0]]):
        raise DataError(f"{points.source}: no start of {form.name} led anywhere; are the columns what they should be?")
    theta, cost = _polish(predict, target, found.theta[order[0]], used, free)
    theta = form.canonical(theta)
    residual = target - predict(theta[None])[0]
    scale = _spread_of(residual, len(target) - free.sum())
    near = found.cost <= cost * (1 + 1e-3) + 1e-18
    outliers = tuple(int(i) for i in np.flatnonzero(np.abs(residual) > OUTLIER * max(scale, 1e-9)))
    return Fit(form, points, centre, theta, float(used), float(cost), float(scale),
               {"count": len(guesses), "finished": len(kept), "agree": int(near.sum()),
                "rivals": _rivals(form, found.theta, found.cost, theta, cost, centre, used, scale)},
               fixed, outliers)


def _checked_centre(form: Form, points: Points, fixed: Mapping[str, float]) -> dict[str, float]:
    """Where the logarithms of the variables are counted from.  Raises DataError when the points cannot carry the form."""
    unknown = set(fixed) - set(form.params)
    if unknown:
        raise DataError(f"{form.name} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(form.params)}")
    missing = [name for name in form.variables if name not in points.x]
    if missing:
        raise DataError(f"{points.source}: {form.name} wants {', '.join(form.variables)}, and {', '.join(missing)} is not given")
    check_points(points, len(form.params) - len(fixed) + 1, form.variables, form.name)
    centre = {name: float(np.mean(np.log(points.x[name]))) for name in form.variables}
    if any(_outer_of_one(form, name, centre) is None for name in fixed):
        return dict.fromkeys(form.variables, 0.0)       # where inner and outer are the same but for logarithms
    return centre


def _polish(predict: Any, target: Array, theta: Array, delta: float, free: Array) -> tuple[Array, float]:
    """A last search by BFGS with exact gradients; kept if it found something lower."""
    movable = np.flatnonzero(free)

    def cost(moved: Array) -> tuple[float, Array]:
        at = theta.copy()
        at[movable] = moved
        with np.errstate(all="ignore"):
            values, slopes = jacobian(predict, at[None])
            residual = target - values[0]
            return float(huber(residual, delta).sum()), -(slopes[0][movable] @ np.clip(residual, -delta, delta))

    before = cost(theta[movable])[0]
    if before < 1e-24:
        return theta, before
    found = minimize(cost, theta[movable], jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 500})
    if np.isfinite(found.fun) and found.fun < before:
        polished = theta.copy()
        polished[movable] = found.x
        return polished, float(found.fun)
    return theta, before


def _rivals(
    form: Form, thetas: Array, costs: Array, best: Array, cost: float, centre: Mapping[str, float], delta: float, scale: float
) -> list[dict[str, float]]:
    """Other places that starts ended in and that the data cannot tell from the best one, by the likelihood ratio at one unit."""
    unit = min(delta * scale, scale**2) if scale > 0 else 0.0
    close = np.flatnonzero(costs <= cost + 0.5 * unit)
    found: list[dict[str, float]] = []
    known = [np.nan_to_num(form.outer(best[None], centre)[0])]
    for index in close[np.argsort(costs[close], kind="stable")]:
        outer = form.outer(form.canonical(thetas[index])[None], centre)[0]
        if (np.isfinite(outer).all() and len(known) < 4
            and all(np.nanmax(np.abs(outer - one) / (1e-12 + np.abs(one))) > 0.2 for one in known)):
            known.append(outer)
            found.append(dict(zip(form.params, outer.tolist(), strict=True)))
    return found


def _spread_of(residuals: Array, freedom: float | None = None) -> float:
    """A robust standard deviation: 1.4826 times the median of the sizes, corrected for the parameters that were fitted."""
    count = len(residuals)
    middle = 0.0 if freedom is not None else np.median(residuals)
    lost = np.sqrt(count / max(freedom, 1.0)) if freedom is not None else 1.0
    return float(1.4826 * np.median(np.abs(residuals - middle)) * lost)


def _outer_of_one(form: Form, name: str, centre: Mapping[str, float]) -> float | None:
    """None when an outer parameter depends on where the variables are centred."""
    probe = np.full((1, len(form.params)), 0.3)
    index = form.params.index(name)
    here = form.outer(probe, centre)[0, index]
    there = form.outer(probe, dict.fromkeys(centre, 0.0))[0, index]
    return float(here) if np.isclose(here, there) else None


def _inner(form: Form, name: str, value: float, fixed: Mapping[str, float]) -> float:
    if form.name == "m4" and name == "e_0":  # inner: what it is above e_inf
        if "e_inf" not in fixed:
            raise DataError("m4: give e_inf too when e_0 is fixed (--fix e_inf=...)")
        value = value - fixed["e_inf"]
    if name in form.positive and value <= 0:
        raise DataError(f"{form.name}: {name} wants a positive value, got {value:g}")
    return float(np.log(value)) if name in form.positive else float(value)
