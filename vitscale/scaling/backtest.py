"""Which form to believe: each is fitted to small budgets and evaluated on larger ones, again and again, with the origin rolling forward.

An error inside the sample rewards parameters; what a law is for is the next, larger run (Alabdulmohsin et al. 2022, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitscale.errors import DataError
from vitscale.scaling.fit import Fit, fit
from vitscale.scaling.form import Form
from vitscale.scaling.forms import FORMS
from vitscale.scaling.points import Points
from vitscale.scaling.solve import Array

FOLDS = 6
WITHIN = 1.2  # runs whose FLOPs are no further apart had one budget, which whole batches fill more or less
STARTS = 32


@dataclass(frozen=True)
class Backtest:
    """`rows`: one for each form and origin.  `scores`: mean over the origins that every form in it shares; the lowest is chosen."""

    rows: tuple[dict[str, Any], ...]
    scores: dict[str, float]
    chosen: str
    weights: dict[str, float]  # of the forms in an average of predictions, by the inverse of their squared errors
    reasons: dict[str, str]  # forms that could not be judged


def order_of(points: Points) -> Array:
    """What "larger" means: FLOPs, else the one variable, else n d."""
    for role in ("c", "t", "x"):
        if role in points.x:
            return points.x[role]
    return points.x["n"] * points.x["d"]


def budgets_in(points: Points) -> list[float]:
    """The largest value of each budget, in their order.  Of a law in one variable each value of that is one."""
    order = order_of(points)
    if "c" not in points.x and ("t" in points.x or "x" in points.x):
        return [float(value) for value in np.unique(order)]
    ends: list[float] = []
    smallest = 0.0
    for value in np.unique(order).tolist():
        if ends and value <= WITHIN * smallest:
            ends[-1] = value
        else:
            smallest = value
            ends.append(value)
    return ends


def origins(points: Points, needed: int) -> list[float]:
    """Budgets behind which training ends, evenly over those that leave `needed` points before and one at least after them."""
    order = order_of(points)
    levels = budgets_in(points)
    usable = [level for level in levels[:-1] if (order <= level).sum() >= max(needed, 0.3 * len(order))]
    if len(usable) <= FOLDS:
        return usable
    return [usable[i] for i in np.unique(np.linspace(0, len(usable) - 1, FOLDS).round().astype(int))]


def log_error(found: Fit, points: Points) -> float:
    """Root mean square of log(predicted / observed)."""
    told = np.maximum(found.predict(points.x), 1e-3 * points.y)
    return float(np.sqrt(np.mean(np.log(told / points.y) ** 2)))


def backtest(
    points: Points, forms: Sequence[Form], fixed: dict[str, dict[str, float]] | None = None, delta: float | None = None
) -> Backtest:
    """Raises DataError when no form can be judged."""
    fixed, order = fixed or {}, order_of(points)
    needed = max(len(form.params) for form in forms) + 1
    at = origins(points, needed)
    if not at:  # so few points that only the forms with fewest parameters can be judged
        needed = min(len(form.params) for form in forms) + 1
        at = origins(points, needed)
    rows, reasons = [], {}
    errors: dict[str, list[float]] = {}
    for form in forms:
        told: list[float] = []
        for level in at:
            try:
                before, after = points.take(order <= level), points.take(order > level)
                found = fit(form, before, starts=STARTS, refits=1, fixed=fixed.get(form.name), delta=delta)
                told.append(log_error(found, after))
            except DataError as error:
                reasons[form.name] = str(error)
                break
            rows.append({"form": form.name, "trained_up_to": level, "points_before": len(before), "points_after": len(after),
                         "rms_log_error": told[-1]})
        if len(told) == len(at) and told:
            errors[form.name] = told
            reasons.pop(form.name, None)
    if not errors:
        why = next(iter(reasons.values()), f"{points.source}: too few budgets")
        raise DataError(f"no form can be evaluated by a backtest: {why}")
    scores = {name: float(np.mean(told)) for name, told in errors.items()}
    chosen = min(scores, key=lambda name: (round(scores[name], 12), len(FORMS[name].params), name))
    inverse = {name: 1 / (1e-12 + float(np.mean(np.square(told)))) for name, told in errors.items()}
    total = sum(inverse.values())
    return Backtest(tuple(rows), scores, chosen, {name: value / total for name, value in inverse.items()}, reasons)
