"""Optima read off the runs themselves: the envelope of training curves, IsoFLOP profiles, the best rate or batch of a group.

Chinchilla's approaches 1 and 2 (Hoffmann et al. 2022, sections 3.1 and 3.2).  Both end in N* = k C^a and D* = k C^b.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from vitscale.errors import DataError
from vitscale.scaling.fit import SEED
from vitscale.scaling.points import Points
from vitscale.scaling.solve import Array

SAME = 1.15  # budgets within this factor are one


@dataclass(frozen=True)
class Optimum:
    """The best of a group of runs, from a parabola through the logarithms."""

    at: float  # where the parabola is lowest
    y: float  # its height there
    curvature: float  # of log y over log x, positive
    group: float  # the budget, or what else the group has in common
    members: tuple[int, ...]


def lowest(x: Array, y: Array) -> tuple[float, float, float] | str:
    """(place, height, curvature) of the parabola of log y over log x, or why there is none.  x (n,), y (n,), 3 places at least.

    Least squares, doubly weighted near to the lowest point: a profile is a parabola only there.
    """
    if len(set(np.round(np.log(x), 9))) < 3:
        return "fewer than three different values"
    u, v = np.log(x), np.log(y)
    middle = u.mean()
    weight = np.exp(-0.5 * ((u - u[np.argmin(v)]) / max(np.ptp(u) / 2, 1e-9)) ** 2)
    a, b, c = np.polyfit(u - middle, v, 2, w=np.sqrt(weight))
    if a <= 0:
        return "the profile does not bend upwards"
    at = -b / (2 * a)
    if not u.min() - 1e-9 <= at + middle <= u.max() + 1e-9:
        return f"its lowest point would lie outside of the values tried, at {np.exp(at + middle):.3g}"
    return float(np.exp(at + middle)), float(np.exp(c - b * b / (4 * a))), float(2 * a)


def budgets_of(points: Points) -> Array:
    """The budget of each point: compute, or where points lie within SAME of each other their geometric mean."""
    order = np.argsort(points.x["c"], kind="stable")
    logs = np.log(points.x["c"])[order]
    label = np.zeros(len(points))
    found: list[tuple[float, list[int]]] = []
    for i, value in zip(order, logs, strict=True):
        if not found or value - found[-1][0] > np.log(SAME):
            found.append((value, []))
        found[-1][1].append(i)
    for _, members in found:
        label[members] = np.exp(np.log(points.x["c"][members]).mean())
    return label


def isoflop(points: Points) -> tuple[list[Optimum], list[dict[str, Any]]]:
    """Approach 2: the optimal size of each budget; and the budgets that show none, with reasons."""
    labels = budgets_of(points)
    found, left_out = [], []
    for budget in sorted(set(labels)):
        members = np.flatnonzero(labels == budget)
        best = lowest(points.x["n"][members], points.y[members])
        if isinstance(best, str):
            left_out.append({"where": f"budget {budget:.3g}", "reason": best})
        else:
            found.append(Optimum(*best, group=float(budget), members=tuple(members.tolist())))
    return found, left_out


def envelope(points: Points, grid: int = 1500) -> list[tuple[float, float, float]]:
    """Approach 1: (compute, size, y) where each size is the best of all training curves, in the middle of its stretch.

    Curves are interpolated monotonically in logarithms; the smallest and largest size, whose stretches are cut off, are left out.
    """
    curves = []
    for size in sorted(set(points.x["n"])):
        mine = np.flatnonzero(points.x["n"] == size)
        mine = mine[np.argsort(points.x["c"][mine], kind="stable")]
        c, index = np.unique(np.log(points.x["c"][mine]), return_index=True)
        if len(c) >= 2:
            curves.append((size, c, PchipInterpolator(c, np.log(points.y[mine])[index], extrapolate=False)))
    if len(curves) < 4:
        raise DataError(
            f"{points.source}: approach 1 wants the training curves (two points or more) of four sizes or more, got {len(curves)}")
    low, high = min(c[0] for _, c, _ in curves), max(c[-1] for _, c, _ in curves)
    at = np.linspace(low, high, grid)
    heights = np.array([np.nan_to_num(curve(at), nan=np.inf) for _, _, curve in curves])
    best = np.argmin(heights, axis=0)
    found = []
    for number in range(1, len(curves) - 1):
        mine = np.flatnonzero(best == number)
        if (not len(mine) or mine[0] == 0 or mine[-1] == grid - 1 or not (best[: mine[0]] < number).all()
            or not (best[mine[-1] + 1 :] > number).all()):
            continue
        ends = [
            _crossing(curves[best[a]][2], curves[best[b]][2], at[a], at[b]) for a, b in ((mine[0] - 1, mine[0]), (mine[-1], mine[-1] + 1))]
        middle = sum(ends) / 2
        found.append((float(np.exp(middle)), float(curves[number][0]), float(np.exp(curves[number][2](middle)))))
    if len(found) < 2:
        raise DataError(
            f"{points.source}: approach 1 wants two sizes or more between the smallest and the largest that are the best at some "
            f"compute, found {len(found)}: train the sizes for longer, or take others")
    return found


def _crossing(first: Any, second: Any, low: float, high: float) -> float:
    """Where two curves cross between two places, by bisection."""

    def gap(at: float) -> float:
        value = float(first(at) - second(at))
        return value if np.isfinite(value) else -np.inf

    if not gap(low) <= 0 <= gap(high):
        return (low + high) / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) <= 0 else (low, middle)
    return (low + high) / 2


def approach(points: Points, number: int, draws: int = 200) -> dict[str, Any]:
    """Approach 1 or 2: exponents and factors of N* and D* with bootstrap intervals by run, the optima, and what was left out.

    D* is C over the FLOPs of a sample at N*, which the points' own c / d tell as a power of n.
    """
    for role in ("n", "d", "c"):
        if role not in points.x:
            raise DataError(f"{points.source}: approach {number} wants n, d and FLOPs, and {role} is not given (--{role}, or --flops-per)")
    left_out: list[dict[str, Any]] = []

    def optima(of: Points) -> list[tuple[float, float, float]]:
        if number == 1:
            return envelope(of)
        found, skipped = isoflop(of)
        left_out[:] = skipped
        return [(one.group, one.at, one.y) for one in found]

    told = optima(points)
    reasons = list(left_out)
    if len(told) < 2:
        why = f": {reasons[0]['where']}: {reasons[0]['reason']}" if reasons else ""
        raise DataError(
            f"{points.source}: approach {number} wants two budgets or more with an optimum among the sizes tried, got {len(told)}{why}")
    per_sample = np.polyfit(np.log(points.x["n"]), np.log(points.x["c"] / points.x["d"]), 1)

    drawn = []
    for resampled in _resampled(points, draws, keep_sizes=number == 1):
        try:
            found = optima(resampled)
        except DataError:
            continue
        if len(found) >= 2:
            drawn.append(_lines(found, per_sample))
    a, k, b, m = _lines(told, per_sample)
    spread = np.array(drawn) if len(drawn) >= 20 else None

    def shown(value: float, column: int, power: bool = False) -> dict[str, float | None]:
        ends = (None, None) if spread is None else tuple(float(one) for one in np.quantile(spread[:, column], (0.025, 0.975)))
        turn = (lambda one: None if one is None else float(np.exp(one))) if power else (lambda one: one)
        return {"value": turn(value), "low": turn(ends[0]), "high": turn(ends[1])}

    return {"approach": number, "optima": [{"c": c, "n": n, "y": y} for c, n, y in told], "excluded": reasons,
            "n": {"k": shown(k, 1, True), "a": shown(a, 0)}, "d": {"k": shown(m, 3, True), "b": shown(b, 2)}}


def _resampled(points: Points, draws: int, keep_sizes: bool) -> Iterator[Points]:
    """The points of as many runs drawn with replacement; `keep_sizes`: each for another of its own size, as whole curves want."""
    rng = np.random.default_rng(SEED + 2)
    names = sorted(set(points.run))
    member = {name: np.flatnonzero(np.array(points.run) == name) for name in names}
    sizes = {name: points.x["n"][member[name][0]] for name in names}
    for _ in range(draws):
        if keep_sizes:
            chosen = [str(rng.choice([other for other in names if sizes[other] == sizes[name]])) for name in names]
        else:
            chosen = [str(name) for name in rng.choice(names, len(names))]
        yield points.take(np.concatenate([member[name] for name in chosen]))


def _lines(found: Sequence[tuple[float, float, float]], per_sample: Array) -> tuple[float, float, float, float]:
    """Slope and height of log N* and of log D* over log C."""
    c, n = np.log([one[0] for one in found]), np.log([one[1] for one in found])
    d = c - np.polyval(per_sample, n)
    (a, k), (b, m) = np.polyfit(c, n, 1), np.polyfit(c, d, 1)
    return float(a), float(k), float(b), float(m)
