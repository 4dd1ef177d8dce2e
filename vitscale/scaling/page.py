"""One self-contained interactive page of a fit: figures to hover over, the numbers, what was left out.  Needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.counts import plural
from vitscale.pages.sheet import DrawnLine, Part, chart, heading, sheet, table, words
from vitscale.scaling.analyse import Analysis
from vitscale.scaling.approaches import budgets_of
from vitscale.scaling.backtest import order_of
from vitscale.scaling.figures import level_place, plane_law, sized
from vitscale.scaling.files import write_text
from vitscale.scaling.points import Points
from vitscale.scaling.say import choice_by_backtest, interval, number, parameters_of, span


def write_page(found: Analysis, path: Path, *, title: str, plan: Mapping[str, Any] | None = None,
               verdict: Mapping[str, Any] | None = None, held_out: Points | None = None) -> None:
    """The page of a fit as one file; `plan` and `verdict` as in plan.json and verdict.json.  Raises DataError if it cannot be written."""
    held_out = held_out if held_out is not None else found.held_out
    parts = [words(_summary(found, plan, verdict)), words(f"data sha256 {found.told['data']['sha256']}", "soft"), _surface(found, held_out),
             _lines(found, held_out), _residuals(found), *_numbers(found), *_plan(plan), *_verdict(verdict), *_left_out(found)]
    write_text(path, sheet(title, parts))


def _groups(points: Points, held: bool) -> list[tuple[float, Points, bool]]:
    """Points by their budget."""
    labels = budgets_of(points)
    return [(float(level), points.take(labels == level), held) for level in sorted(set(labels))]


def _surface(found: Analysis, held_out: Points | None) -> Part | None:
    law = plane_law(found)
    if law is None or not sized(found.points):
        return None
    groups = _groups(found.points, False) + (_groups(held_out, True) if held_out is not None and len(held_out) else [])
    if len(groups) > 30:
        return None
    lines = []
    for at, (level, mine, held) in enumerate(groups):
        label, place = f"{level:.3g} FLOP" + (", held out" if held else ""), at / max(len(groups) - 1, 1)
        n = np.geomspace(mine.x["n"].min() / 1.6, mine.x["n"].max() * 1.6, 80)
        names = [f"{run}, {number(d)} samples, {c:.3g} FLOP" for run, d, c in zip(mine.run, mine.x["d"], mine.x["c"], strict=True)]
        curve = found.fits[law].predict(level_place(found, law, n, level))
        lines += [DrawnLine(label, mine.x["n"].tolist(), mine.y.tolist(), None, place, names=names),
                  DrawnLine(label, n.tolist(), curve.tolist(), None, place, True, held)]
    return chart(f"IsoFLOP profiles; lines: {law}", found.points.fitted, lines, xlabel="parameters N", log=True)


def _lines(found: Analysis, held_out: Points | None) -> Part | None:
    laws = {name: one for name, one in found.fits.items() if one.form.variables == ("x",)}
    if not laws:
        return None
    x = found.points.x["x"]
    at = np.geomspace(x.min() / 1.2, max(x.max() * 10, held_out.x["x"].max() if held_out is not None else 0), 200)
    lines = [DrawnLine("fitted", x.tolist(), found.points.y.tolist(), 0, names=found.points.run)]
    if held_out is not None and len(held_out):
        lines.append(DrawnLine("held out", held_out.x["x"].tolist(), held_out.y.tolist(), 1, names=held_out.run))
    lines += [DrawnLine(name, at.tolist(), one.predict({"x": at}).tolist(), 0 if name == found.chosen else 2 + number, 0, True,
                        name != found.chosen) for number, (name, one) in enumerate(laws.items())]
    return chart("Laws; dashed: not chosen", found.points.fitted, lines, xlabel="x", log=True)


def _residuals(found: Analysis) -> Part | None:
    if found.chosen is None:
        return None
    law, place, points = found.fits[found.chosen], order_of(found.points), found.points
    sizes = np.log10(points.x["n"]) if "n" in points.x else np.zeros(len(points))
    far = float(np.ptp(sizes)) or 1.0
    lines = [DrawnLine("zero", [float(place.min()), float(place.max())], [0.0, 0.0], 7, 0, True)]
    for size in np.unique(sizes)[:30]:      # the scale goes from the smallest model to the largest
        mine = np.flatnonzero(sizes == size)
        lines.append(DrawnLine(f"{10 ** size:.3g} parameters" if "n" in points.x else "residual", place[mine].tolist(),
                               law.residuals[mine].tolist(), None, float(size - sizes.min()) / far, names=[points.run[i] for i in mine]))
    return chart(f"Residuals of {law.form.name}", "log(observed / fitted)" if law.form.link == "log" else "observed - fitted", lines,
                 xlabel="FLOPs of a training" if "c" in points.x else "x", log=False)


def _summary(found: Analysis, plan: Mapping[str, Any] | None, verdict: Mapping[str, Any] | None) -> str:
    data = found.told["data"]
    text = f"{plural(data['points'], 'point')} of {plural(data['runs'], 'run')} from {data['source']}; "
    text += f"{data['metric']}, {data['direction']}."
    if found.chosen:
        text += f" Chosen law: {found.chosen}, {found.fits[found.chosen].form.text}."
    if verdict:
        text += f" Verdict: {verdict['inside']} of {plural(verdict['of'], 'held-out run')} inside their 95 % interval."
    if plan and "n" in plan:
        text += f" For {plan['budget_flop']:.3g} FLOP: {span(plan['n'])} parameters, {span(plan['d'])} samples."
    return text


def _numbers(found: Analysis) -> list[Part]:
    parts = [heading("Choice by backtest"), table(*choice_by_backtest(found.told))] if len(found.fits) > 1 else []
    for name, one in found.told["fits"].items():
        if any("low" in value for value in one["parameters"].values()):
            parts += [heading(f"{name}: {one['formula']}"), table(*parameters_of(one["parameters"])),
                      *(words(warning, "notice") for warning in one["warnings"])]
    return parts


def _plan(plan: Mapping[str, Any] | None) -> list[Part]:
    if not plan or "frontier" not in plan:
        return []
    rows = [[f"{one['c']:.3g}", span(one["n"]), span(one["d"]), span(one["predicted"])] for one in plan["frontier"]]
    return [heading("Optimum by budget"), table(["FLOP", "parameters", "samples", "predicted"], rows)]


def _verdict(verdict: Mapping[str, Any] | None) -> list[Part]:
    if not verdict:
        return []
    rows = [[one["run"], number(one["predicted"]), interval(one["low"], one["high"]), number(one["observed"]),
             "inside" if one["inside"] else "outside"] for one in verdict["runs"]]
    return [heading(f"Hold-out, predicted {verdict['prediction_time']}"),
            table(["run", "predicted", "95 % interval", "observed", ""], rows)]


def _left_out(found: Analysis) -> list[Part]:
    rows = [[one["where"], one["reason"]] for one in found.told["data"]["excluded"]]
    return [heading("Left out"), table(["point", "why"], rows, numbers=False)] if rows else []
