"""From points to everything that can be said of them: the choice of a law, its numbers with intervals, and what to doubt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitscale.counts import plural
from vitscale.errors import DataError
from vitscale.scaling.approaches import approach
from vitscale.scaling.backtest import Backtest, backtest, budgets_in, log_error, order_of
from vitscale.scaling.fit import OUTLIER, Fit, fit
from vitscale.scaling.form import Form
from vitscale.scaling.forms import FORMS
from vitscale.scaling.intervals import LEVEL, Draws, LikelihoodProfile, bootstrap, influence, outer_of, profile
from vitscale.scaling.points import Points

APPROACHES = ("chinchilla1", "chinchilla2")


@dataclass(frozen=True)
class FitRequest:
    """What a user may ask of a fit; None and empty: by the data."""

    forms: tuple[str, ...] = ()
    delta: float | None = None
    fixed: Mapping[str, float] | None = None
    drop_outliers: bool = False
    draws: int = 400
    intervals: bool = True
    hold_out: float = 0.0  # share of the points with the largest budgets that is kept for a verdict


@dataclass(frozen=True)
class Analysis:
    """`told` is fit.json; the rest is for figures and plans."""

    points: Points
    held_out: Points | None
    fits: dict[str, Fit]
    draws: dict[str, Draws]
    profiles: dict[str, dict[str, LikelihoodProfile]]
    tested: Backtest | None
    chosen: str | None
    approaches: dict[str, dict[str, Any]]
    told: dict[str, Any]


def candidates(points: Points) -> list[str]:
    """The forms that fit the variables given."""
    if "t" in points.x:
        return ["shape"]
    if "x" in points.x:
        return ["m1", "m2", "m3", "m4", "saturating", "broken1"]
    return ["chinchilla3", *(["data_constrained"] if "u" in points.x else []), "log_log"]


def check_forms(names: Sequence[str]) -> None:
    known = [*FORMS, *APPROACHES]
    for name in names:
        if name not in known:
            raise DataError(f"--form: no such form {name!r}; there are {', '.join(known)}")


def split(points: Points, share: float) -> tuple[Points, Points | None]:
    """The points of smaller budgets, and the largest ones, which are `share` of all, at least one budget."""
    if not share:
        return points, None
    order = order_of(points)
    edge = next((end for end in budgets_in(points)[-2::-1] if (order > end).mean() >= share), None)
    if edge is None:
        raise DataError(f"{points.source}: a hold-out of {share:g} leaves nothing to fit; take a smaller one")
    return points.take(order <= edge), points.take(order > edge)


def analyse(points: Points, asked: FitRequest, held_out: Points | None = None) -> Analysis:
    """Raises DataError when nothing can be fitted."""
    check_forms(asked.forms)
    if held_out is None:
        points, held_out = split(points, asked.hold_out)
    names = list(asked.forms) or candidates(points)
    approaches = {name: approach(points, int(name[-1]), asked.draws // 2) for name in names if name in APPROACHES}
    forms = [FORMS[name] for name in names if name not in APPROACHES]
    fixed = _fixed_of(forms, asked.fixed or {})
    fits: dict[str, Fit] = {}
    failed: dict[str, str] = {}
    dropped: list[dict[str, Any]] = []
    for form in forms:
        try:
            fits[form.name] = fit(form, points, delta=asked.delta, fixed=fixed[form.name])
        except DataError as error:
            if len(forms) == 1:
                raise
            failed[form.name] = str(error)
    if forms and not fits:
        raise DataError(next(iter(failed.values())))
    tested, chosen = None, next(iter(fits), None)
    if len(fits) > 1:
        try:
            tested = backtest(points, [FORMS[name] for name in fits], fixed, asked.delta)
            chosen = tested.chosen
        except DataError as error:
            chosen = min(fits, key=lambda name: len(fits[name].form.params))
            failed["backtest"] = f"{error}; the form with fewest parameters is taken"
    if asked.drop_outliers and chosen is not None and fits[chosen].outliers:
        out = set(fits[chosen].outliers)
        dropped = [
            {"where": points.run[i], "reason": f"more than {OUTLIER:g} robust standard deviations from {chosen}"} for i in sorted(out)]
        points = points.take([i for i in range(len(points)) if i not in out])
        fits = {name: fit(one.form, points, delta=asked.delta, fixed=fixed[name]) for name, one in fits.items()}
    drawn: dict[str, Draws] = {}
    profiles: dict[str, dict[str, LikelihoodProfile]] = {}
    shown: dict[str, Any] = {}
    wanted = list(fits) if asked.forms else [name for name in fits if name == chosen]
    for name, found in fits.items():
        if name in wanted and asked.intervals:
            drawn[name] = bootstrap(found, asked.draws)
            profiles[name] = _profiles(found, drawn[name])
        shown[name] = describe(found, drawn.get(name), profiles.get(name))
    told: dict[str, Any] = {"format": 1, "data": _described(points) | {"excluded": [*points.excluded, *dropped]},
                            "level": LEVEL, "chosen": chosen, "fits": shown, "not_fitted": failed, "approaches": approaches,
                            "rules": {"outlier": f"named beyond {OUTLIER:g} robust standard deviations, kept unless --drop-outliers",
                                      "choice": "see not_fitted" if not tested and len(fits) != 1 else
                                      "lowest mean error of a rolling-origin backtest" if tested else "the only form"}}
    if tested is not None:
        told["backtest"] = {"rms_log_error": tested.scores, "weights": tested.weights, "not_judged": tested.reasons}
    if held_out is not None and fits:
        told["hold_out"] = judge_points(fits, tested, held_out)
    return Analysis(points, held_out, fits, drawn, profiles, tested, chosen, approaches, told)


def _fixed_of(forms: Sequence[Form], given: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Which of the given values belong to each form.  Raises DataError for one that belongs to none."""
    fixed = {form.name: {key: value for key, value in given.items() if key in form.params} for form in forms}
    unused = set(given) - {key for one in fixed.values() for key in one}
    if unused:
        raise DataError(
            f"--fix: none of {', '.join(form.name for form in forms) or 'the forms'} has a parameter {', '.join(sorted(unused))}")
    return fixed


def _described(points: Points) -> dict[str, Any]:
    """What is fitted, for fit.json."""
    return {"source": points.source, "sha256": points.hash(), "points": len(points), "runs": len(set(points.run)),
            "variables": sorted(points.x), "metric": points.metric,
            "direction": "lower is better" if points.bound is None else f"higher is better; what it lacks to {points.bound:g} is fitted"}


def judge_points(fits: Mapping[str, Fit], tested: Backtest | None, held_out: Points) -> dict[str, Any]:
    """Errors of every form on points that none has seen, and of their average by the backtest's weights."""
    told: dict[str, Any] = {"points": len(held_out), "rms_log_error": {name: log_error(found, held_out) for name, found in fits.items()}}
    if tested is not None:
        mean = sum(
            weight * np.log(np.maximum(fits[name].predict(held_out.x), 1e-3 * held_out.y)) for name, weight in tested.weights.items())
        told["rms_log_error"]["average"] = float(np.sqrt(np.mean((mean - np.log(held_out.y)) ** 2)))
    return told


def _profiles(found: Fit, draws: Draws) -> dict[str, LikelihoodProfile]:
    """Profiles of every free parameter; of a positive one over its logarithm."""
    told = {}
    for name in found.form.params:
        if name in found.fixed:
            continue
        of = _coordinate(found.form, name, outer_of(found, name))
        around = float(np.real(of(found.theta[None]))[0])
        told[name] = profile(found, draws, of, around, max(2 * draws.deviation(of), 1e-9))
    return told


def _coordinate(form: Form, name: str, of: Any) -> Any:
    return (lambda theta: np.log(of(theta))) if name in form.positive else of


def describe(found: Fit, draws: Draws | None, profiles: Mapping[str, LikelihoodProfile] | None) -> dict[str, Any]:
    """One fit as fit.json has it."""
    form = found.form
    params: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in found.params.items():
        one: dict[str, Any] = {"value": value}
        if name in found.fixed:
            one["fixed"] = True
        elif draws is not None and profiles is not None:
            low, high = draws.interval(outer_of(found, name))
            known = profiles[name]
            turn = np.exp if name in form.positive else float
            ends = [None if end is None else float(turn(end)) for end in (known.low, known.high)]
            one |= {"standard_error": draws.deviation(outer_of(found, name)), "low": low, "high": high, "profile": ends,
                    "identified": known.identified}
            if not known.identified:
                side = "any smaller" if known.high is not None else "any larger" if known.low is not None else "any"
                warnings.append(
                    f"{name} is not identified: {side} value fits as well, within the range tried; add runs that tell, or --fix it")
        params[name] = one
    starts = dict(found.starts)
    rivals = starts.pop("rivals")
    if rivals:
        warnings.append(f"starts disagree: {len(rivals)} other sets of numbers fit as well, listed as rivals")
    if starts["agree"] < max(2, starts["finished"] // 10):
        warnings.append(f"only {starts['agree']} of {starts['finished']} starts that were followed to the end found this optimum")
    drives = influence(found, draws) if draws is not None else []
    for one in drives[:3]:
        warnings.append(f"{one['run']} drives the fit: without it {one['parameter']} moves by {one['deviations']:.1f} standard errors")
    outliers: list[dict[str, Any]] = [{"run": found.points.run[i], "residual": float(found.residuals[i])} for i in found.outliers]
    if outliers:
        warnings.append(f"{plural(len(outliers), 'point')} more than {OUTLIER:g} robust standard deviations from the law: "
                        + ", ".join(one["run"] for one in outliers[:5]))
    return {"formula": form.text, "source": form.source, "parameters": params, "huber_delta": found.delta, "objective": found.cost,
            "residual_scale": found.scale, "starts": starts, "rivals": rivals, "outliers": outliers, "influence": drives,
            "warnings": warnings, "in_sample_rms_log_error": log_error(found, found.points)}
