"""What to train next: the best size and number of samples for a budget, and the run that would teach most per FLOP."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitscale.errors import DataError
from vitscale.plan.hardware import DEVICES
from vitscale.scaling.fit import Fit
from vitscale.scaling.intervals import Draws
from vitscale.scaling.points import Points, read_number
from vitscale.scaling.solve import Array

PLANNED = ("chinchilla3", "data_constrained")  # forms that have an optimal size
MFU = 0.4  # assumed where GPU-hours or money are given, as the bill of a run assumes it
_GPU = re.compile(r"^\s*([0-9.,eE+]+[KMBT]?)\s*GPU-?hours?\s+on\s+(.+?)\s*$", re.IGNORECASE)
_MONEY = re.compile(r"^\s*([0-9.,eE+]+[KMBT]?)\s*[A-Za-z$€£]*\s+at\s+([0-9.]+)\s+on\s+(.+?)\s*$", re.IGNORECASE)
_FLOP = re.compile(r"^\s*([0-9.,eE+]+)\s*(?:FLOPs?)?\s*$", re.IGNORECASE)


def budget_of(text: str) -> tuple[float, str]:
    """`1e21`, `1e21 FLOP`, `500 GPU-hours on H100`, `2000 EUR at 2.5 on H100` -> (FLOP, how it was counted).  Raises DataError."""
    if match := _FLOP.match(text):
        amount, note = read_number(match[1]), ""
    elif match := _GPU.match(text):
        amount, note = read_number(match[1]) * 3600 * _peak(match[2]) * MFU, f"; {MFU:.0%} MFU on {match[2]} is an assumption"
    elif match := _MONEY.match(text):
        price = float(match[2])
        if price <= 0:
            raise DataError(f"--budget: {text!r}: the price of a GPU-hour wants to be positive")
        amount = read_number(match[1]) / price * 3600 * _peak(match[3]) * MFU
        note = f"; {MFU:.0%} MFU on {match[3]} is an assumption"
    else:
        raise DataError(f"--budget wants 1e21 (FLOP), '500 GPU-hours on H100', or '2000 EUR at 2.5 on H100' (2.5 a GPU-hour); got {text!r}")
    if not amount > 0 or not np.isfinite(amount):
        raise DataError(f"--budget: {text!r} is no positive number")
    return amount, text.strip() + note


def _peak(name: str) -> float:
    if name not in DEVICES:
        raise DataError(f"--budget: no such GPU {name!r}; there are {', '.join(DEVICES)}")
    peak = DEVICES[name].bf16_flops
    if peak is None:
        raise DataError(f"--budget: {name} has no matrix units for bf16, whose peak GPU-hours are counted with; give FLOP, such as 1e21")
    return peak


def flops_per_sample(points: Points) -> Callable[[Array], Array]:
    """FLOPs of a sample as a power of n, from the points' own c / d."""
    u, v = np.log(points.x["n"]), np.log(points.x["c"] / points.x["d"])
    slope = np.polyfit(u, v, 1)
    return lambda n: np.exp(np.polyval(slope, np.log(n)))


@dataclass(frozen=True)
class Best:
    """The optimum of a budget, each with a 95 % interval (value, low, high)."""

    c: float
    n: tuple[float, float, float]
    d: tuple[float, float, float]
    y: tuple[float, float, float]
    at_edge: bool  # no size inside of the range searched is the best: the law does not say


def best_for(
    found: Fit, draws: Draws, per_sample: Callable[[Array], Array], budget: float, serve: float = 0.0, unique: float | None = None
) -> Best:
    """Minimise y over n under  d f(n) + serve f(n) / 3 = budget, f being FLOPs of a sample forward and back.

    `serve`: images that the model is asked of later, which cost a forward pass each (Sardana et al. 2023).  Solved on a fine grid for
    the fit and for each draw, so for any form; the grid reaches 100 times below and above the sizes that were trained.
    """
    sizes = found.points.x["n"]
    grid = np.geomspace(sizes.min() / 100, sizes.max() * 100 * max(1.0, (budget / found.points.x["c"].max()) ** 0.6), 1200)
    samples = budget / per_sample(grid) - serve / 3
    usable = samples >= 1
    grid, samples = grid[usable], samples[usable]
    if len(grid) < 10:
        raise DataError(
            f"a budget of {budget:.3g} FLOP cannot be spent: serving alone takes as much, or a sample of the smallest model does")
    place = {"n": grid, "d": samples, "c": budget + 0 * grid}
    if "u" in found.form.variables:
        place["u"] = np.full(len(grid), unique if unique is not None else found.points.x["u"].max())
    heights = found.predict(place, np.concatenate([found.theta[None], draws.theta]))
    index = np.argmin(np.where(np.isfinite(heights), heights, np.inf), axis=1)
    n, d, y = grid[index], samples[index], heights[np.arange(len(index)), index]

    def with_ends(values: Array) -> tuple[float, float, float]:
        low, high = np.quantile(values[1:], (0.025, 0.975))
        return float(values[0]), float(low), float(high)

    return Best(budget, with_ends(n), with_ends(d), with_ends(y), bool(index[0] in (0, len(grid) - 1)))


def most_informative(
    found: Fit, draws: Draws, per_sample: Callable[[Array], Array], target: Best, candidates: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Candidates {n, d, u} by how much they would narrow the prediction at the target's optimum, per FLOP; the best first.

    A run observed with the noise of the fit would take cov(target, run)^2 / (var(run) + noise^2) from the target's variance, were the law
    linear near the fit (Bayesian linear regression); the draws tell the covariances.
    """
    if not candidates or found.scale < 1e-9:
        return []
    goal: dict[str, Any] = {"n": target.n[0], "d": target.d[0], "u": max(one.get("u", 1.0) for one in candidates)}
    places = {role: np.array([goal[role], *(one[role] for one in candidates)]) for role in found.form.variables}
    heights = np.log(np.maximum(found.predict(places, draws.theta), 1e-300))
    heights = heights[np.isfinite(heights).all(axis=1)]
    if len(heights) < 20:
        return []
    covariance = np.cov(heights.T)
    told = []
    for number, one in enumerate(candidates, 1):
        flops = float(per_sample(np.array([one["n"]]))[0] * one["d"])
        gained = covariance[0, number] ** 2 / (covariance[number, number] + found.scale**2)
        told.append({**one, "c": flops, "deviation_now": float(np.sqrt(covariance[0, 0])),
                     "deviation_after": float(np.sqrt(max(covariance[0, 0] - gained, 0.0))), "gain_per_flop": float(gained / flops)})
    return sorted(told, key=lambda one: -one["gain_per_flop"])
