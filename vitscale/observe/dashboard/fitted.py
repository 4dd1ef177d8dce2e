"""What `vitscale fit` left in a sweep's folder, as the page shows it: laws, their curves, the verdict on a prediction, the next budget.

Every number and word of it may be foreign: what is not of the form is left out.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vitscale.metrics import JUDGES
from vitscale.observe.dashboard.declared import place
from vitscale.observe.dashboard.thin import plain
from vitscale.runfolder import inside, known, number, printable, read_object

_CURVE = 60             # places of a curve
_MOST = 40              # laws, parameters, runs of a verdict, warnings
_LEVELS = 12
_LARGEST = 1e60        # of a size, images or FLOP: beyond, powers of them are no numbers


def fitted(fit: dict[str, Any]) -> dict[str, Any] | None:
    """fit.json: {"metric", "points", "laws": [{name, formula, source, chosen, parameters, warnings, error, tested}]}, or None."""
    laws = [_law(name, one, fit) for name, one in _items(fit, "fits")]
    laws = sorted((law for law in laws if law["parameters"]), key=lambda law: not law["chosen"])
    data = inside(fit, "data")
    return {"metric": _text(data.get("metric")), "points": known(data.get("points")), "laws": laws} if fit else None


def _law(name: str, one: dict[str, Any], fit: dict[str, Any]) -> dict[str, Any]:
    parameters = []
    for key, told in _items(one, "parameters"):
        ends = told.get("profile")
        profile = [known(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else None
        parameters.append({"name": _text(key), **{part: known(told.get(part)) for part in ("value", "low", "high")},
                           "profile": profile, "given": told.get("fixed") is True, "identified": told.get("identified") is not False})
    warnings = one.get("warnings")
    return {"name": _text(name), "formula": _text(one.get("formula")), "source": _text(one.get("source")),
            "chosen": name == fit.get("chosen"), "parameters": parameters,
            "warnings": [_text(said) for said in warnings[:_MOST]] if isinstance(warnings, list) else [],
            "error": known(one.get("in_sample_rms_log_error")),
            "tested": known(inside(inside(fit, "backtest"), "rms_log_error").get(name))}


def curves(fit: dict[str, Any], points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The chosen law, else Chinchilla's, along each budget, or None: {"law", "metric", "of" (its name in `points`), "title", "rises",
    "lines": [{level, held_out, x, y}]}.  Of a metric that rises, what it lacks to 1 was fitted, and is drawn."""
    metric = _text(inside(fit, "data").get("metric"))
    usable = [point for point in points if all(0 < (point[name] or 0) < _LARGEST for name in ("parameters", "images", "compute", "level"))]
    judge = next((one for one in JUDGES if one.column == metric), None)
    if judge is None or len({point["parameters"] for point in usable}) < 2:
        return None
    from vitscale.scaling.law import law_at
    from vitscale.scaling.optimum import flops_per_sample
    from vitscale.scaling.points import Points

    size, images, compute = (np.array([point[name] for point in usable]) for name in ("parameters", "images", "compute"))
    per_sample = flops_per_sample(Points({"n": size, "d": images, "c": compute}, compute, tuple(point["name"] for point in usable)))
    unique = max((point["unique"] or 0 for point in usable), default=0)
    for name in (fit.get("chosen"), "chinchilla3"):
        told = inside(inside(inside(fit, "fits"), str(name)), "parameters")
        params = {key: number(one.get("value")) for key, one in told.items() if isinstance(one, dict)}
        lines = []
        for level in sorted({point["level"] for point in usable})[-_LEVELS:]:
            mine = [point["parameters"] for point in usable if point["level"] == level]
            n = np.geomspace(min(mine) / 1.3, max(mine) * 1.3, _CURVE)
            x = {"n": n, "d": level / per_sample(n), "c": np.full(_CURVE, level)} | ({"u": np.full(_CURVE, unique)} if unique > 0 else {})
            y = law_at(str(name), params, x, 1.0 if judge.better == "higher" else None)
            if y is not None and len(mine) > 1:
                held = all(point["held_out"] for point in usable if point["level"] == level)
                lines.append({"level": level, "held_out": held, "x": plain(n), "y": plain(np.where(np.isfinite(y), y, np.nan))})
        if lines:
            return {"law": _text(name), "metric": metric, "of": place(judge), "title": judge.title, "rises": judge.better == "higher",
                    "lines": lines}
    return None


def verdict(folder: Path) -> dict[str, Any] | None:
    """verdict.json, or while runs are missing prediction.json: {"law", "time", "inside", "of", ..., "runs"}, or None."""
    found = read_object(folder / "verdict.json")
    judged = bool(found)
    found = found or read_object(folder / "prediction.json")
    listed = found.get("runs")
    rows = [{"run": _text(row.get("run")), "inside": row.get("inside") is True,
             **{name: known(row.get(name)) for name in ("predicted", "low", "high", "observed", "log_error")}}
            for row in (listed[:_MOST] if isinstance(listed, list) else ()) if isinstance(row, dict)]
    if not rows:
        return None
    return {"judged": judged, "law": _text(found.get("law")), "time": _text(found.get("prediction_time", found.get("time"))), "runs": rows,
            **{name: known(found.get(name)) for name in ("inside", "of", "rms_log_error")},
            "unchanged": found.get("data_unchanged") is not False, "before": found.get("predicted_before_start") is not False}


def plan(folder: Path) -> dict[str, Any] | None:
    """plan.json: the optimum of the next budget, each [value, low, high], and the run that is recommended; None: there is none."""
    found = read_object(folder / "plan.json")
    optimum = {}
    for name in ("n", "d", "predicted"):
        three = found.get(name)
        if isinstance(three, list) and len(three) == 3:
            optimum[name] = [known(value) for value in three]
    if known(found.get("budget_flop")) is None or not (optimum or found.get("reason")):
        return None
    recommended = {_text(name): known(value) for name, value in list(inside(found, "recommended").items())[:_MOST]}
    return {"budget": known(found["budget_flop"]), "note": _text(found.get("budget")), "law": _text(found.get("law")), "optimum": optimum,
            "recommended": {name: value for name, value in recommended.items() if value is not None}, "reason": _text(found.get("reason"))}


def _items(found: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, one) for name, one in list(inside(found, key).items())[:_MOST] if isinstance(one, dict)]


def _text(value: Any) -> str:
    return "" if value is None else printable(str(value)[:400])
