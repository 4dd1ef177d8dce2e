"""One self-contained interactive page of a fit: figures to hover over, the numbers, what was left out.  Needs no network."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.colors import sample_colorscale

from vitscale.scaling.analyse import Analysis
from vitscale.scaling.approaches import budgets_of
from vitscale.scaling.backtest import order_of
from vitscale.scaling.figures import level_place, plane_law, sized
from vitscale.scaling.files import write_text
from vitscale.scaling.points import Points
from vitscale.scaling.say import number

_CSS = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0;font-variant-numeric:tabular-nums}td,th{padding:.15rem .9rem .15rem 0;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #999;font-weight:600}h2{margin-top:2rem;font-size:1.15rem}
.warn{color:#a02020}.soft{color:#777}code{background:#f4f4f4;padding:0 .2rem}"""


def write_page(
    found: Analysis,
    path: Path,
    *,
    title: str,
    plan: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
    held_out: Points | None = None,
) -> None:
    """All text from files is escaped; plotly's script is inside."""
    held_out = held_out if held_out is not None else found.held_out
    figures = [figure for figure in (_surface(found, held_out), _lines(found, held_out), _residuals(found)) if figure is not None]
    parts = []
    for i, figure in enumerate(figures):
        figure.update_layout(template="plotly_white", height=430, margin={"l": 60, "r": 20, "t": 40, "b": 50}, font={"size": 13})
        parts.append(
            plotly.io.to_html(figure, include_plotlyjs=i == 0, full_html=False, div_id=f"figure-{i}", config={"displaylogo": False})
        )
    body = [
        f"<h1>{escape(title)}</h1>",
        _summary(found, plan, verdict),
        *parts,
        _tables(found),
        _plan(plan),
        _verdict(verdict),
        _left_out(found),
    ]
    write_text(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_CSS}</style><body>'
        + "\n".join(part for part in body if part)
        + "</body></html>\n",
    )


def _name(points: Points) -> str:
    return escape(points.metric if points.bound is None else f"{points.bound:g} - {points.metric}")


def _surface(found: Analysis, held_out: Points | None) -> go.Figure | None:
    law = plane_law(found)
    if law is None or not sized(found.points):
        return None
    labels = budgets_of(found.points)
    levels = sorted(set(labels))
    if len(levels) > 30:
        return None
    figure = go.Figure()
    colours = sample_colorscale("Viridis", [0.9 * i / max(len(levels), 1) for i in range(len(levels) + 1)])
    groups = [(level, found.points.take(labels == level), colours[i], False) for i, level in enumerate(levels)]
    if held_out is not None and len(held_out):
        theirs = budgets_of(held_out)
        groups += [(level, held_out.take(theirs == level), "#c1272d", True) for level in sorted(set(theirs))]
    for level, mine, colour, held in groups:
        name = f"{level:.3g} FLOP" + (", held out" if held else "")
        figure.add_scatter(
            x=mine.x["n"],
            y=mine.y,
            mode="markers",
            name=name,
            legendgroup=name,
            marker={"color": colour, "size": 8, "symbol": "circle-open" if held else "circle"},
            text=[escape(run) for run in mine.run],
            customdata=np.stack([mine.x["d"], mine.x["c"]], axis=1),
            hovertemplate="%{text}<br>N %{x:.4s}<br>D %{customdata[0]:.4s}<br>%{customdata[1]:.3g} FLOP<br>%{y:.4f}<extra></extra>",
        )
        n = np.geomspace(mine.x["n"].min() / 1.6, mine.x["n"].max() * 1.6, 80)
        figure.add_scatter(
            x=n,
            y=found.fits[law].predict(level_place(found, law, n, level)),
            mode="lines",
            legendgroup=name,
            showlegend=False,
            line={"color": colour, "width": 1.5, "dash": "dash" if held else "solid"},
            hoverinfo="skip",
        )
    figure.update_layout(title=f"IsoFLOP profiles; lines: {law}")
    figure.update_xaxes(type="log", title="parameters N")
    figure.update_yaxes(type="log", title=_name(found.points))
    return figure


def _lines(found: Analysis, held_out: Points | None) -> go.Figure | None:
    laws = {name: one for name, one in found.fits.items() if one.form.variables == ("x",)}
    if not laws:
        return None
    x = found.points.x["x"]
    at = np.geomspace(x.min() / 1.2, max(x.max() * 10, held_out.x["x"].max() if held_out is not None else 0), 200)
    figure = go.Figure()
    for name, one in laws.items():
        figure.add_scatter(
            x=at,
            y=one.predict({"x": at}),
            mode="lines",
            name=name + (" (chosen)" if name == found.chosen else ""),
            line={"width": 3 if name == found.chosen else 1.2},
        )
    figure.add_scatter(
        x=x, y=found.points.y, mode="markers", name="fitted", marker={"color": "#222"}, text=[escape(run) for run in found.points.run]
    )
    if held_out is not None and len(held_out):
        figure.add_scatter(
            x=held_out.x["x"], y=held_out.y, mode="markers", name="held out", marker={"color": "#222", "symbol": "circle-open"}
        )
    figure.update_xaxes(type="log", title="x")
    figure.update_yaxes(type="log", title=_name(found.points))
    return figure


def _residuals(found: Analysis) -> go.Figure | None:
    if found.chosen is None:
        return None
    law = found.fits[found.chosen]
    figure = go.Figure()
    colour = np.log10(found.points.x["n"]) if "n" in found.points.x else None
    figure.add_scatter(
        x=order_of(found.points),
        y=law.residuals,
        mode="markers",
        text=[escape(run) for run in found.points.run],
        marker={
            "size": 8,
            "color": colour if colour is not None else "#222",
            "colorscale": "Viridis",
            "colorbar": {"title": "log10 N"} if colour is not None else None,
        },
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
    )
    figure.add_hline(y=0, line={"width": 1, "color": "#999"})
    figure.update_layout(title=f"Residuals of {law.form.name}")
    figure.update_xaxes(type="log", title="FLOPs of a training" if "c" in found.points.x else "x")
    figure.update_yaxes(title="log(observed / fitted)" if law.form.link == "log" else "observed - fitted")
    return figure


def _table(head: list[str], rows: list[list[Any]]) -> str:
    cells = "".join(f"<th>{escape(str(one))}</th>" for one in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(one))}</td>" for one in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _span(three: Any) -> str:
    return f"{number(three[0])} ({number(three[1])} to {number(three[2])})"


def _summary(found: Analysis, plan: Mapping[str, Any] | None, verdict: Mapping[str, Any] | None) -> str:
    data = found.told["data"]
    text = f"{data['points']} points of {data['runs']} runs from {data['source']}; {data['metric']}, {data['direction']}."
    if found.chosen:
        text += f" Chosen law: {found.chosen}, {found.fits[found.chosen].form.text}."
    if verdict:
        text += f" Verdict: {verdict['inside']} of {verdict['of']} held-out runs inside their 95 % interval."
    if plan and "n" in plan:
        text += f" For {plan['budget_flop']:.3g} FLOP: {_span(plan['n'])} parameters, {_span(plan['d'])} samples."
    return f"<p>{escape(text)}</p><p class=soft>data sha256 {escape(data['sha256'])}</p>"


def _tables(found: Analysis) -> str:
    parts = []
    scores = found.told.get("backtest", {}).get("rms_log_error", {})
    if len(found.fits) > 1:
        rows = [
            [
                name + (" (chosen)" if name == found.chosen else ""),
                len(one["parameters"]),
                f"{one['in_sample_rms_log_error']:.2%}",
                f"{scores[name]:.2%}" if name in scores else "not judged",
            ]
            for name, one in found.told["fits"].items()
        ]
        parts.append("<h2>Choice by backtest</h2>" + _table(["form", "parameters", "in sample", "backtest"], rows))
    for name, one in found.told["fits"].items():
        if not any("low" in value for value in one["parameters"].values()):
            continue
        rows = []
        for key, value in one["parameters"].items():
            if value.get("fixed"):
                rows.append([key, number(value["value"]), "given", "", ""])
            else:
                rows.append(
                    [
                        key,
                        number(value["value"]),
                        number(value["standard_error"]),
                        f"{number(value['low'])} to {number(value['high'])}",
                        f"{number(value['profile'][0])} to {number(value['profile'][1])}",
                    ]
                )
        parts.append(
            f"<h2>{escape(name)}: {escape(one['formula'])}</h2>"
            + _table(["parameter", "value", "standard error", "95 % bootstrap", "95 % profile"], rows)
            + "".join(f"<p class=warn>{escape(warning)}</p>" for warning in one["warnings"])
        )
    return "\n".join(parts)


def _plan(plan: Mapping[str, Any] | None) -> str:
    if not plan or "frontier" not in plan:
        return ""
    rows = [[f"{one['c']:.3g}", _span(one["n"]), _span(one["d"]), _span(one["predicted"])] for one in plan["frontier"]]
    return "<h2>Optimum by budget</h2>" + _table(["FLOP", "parameters", "samples", "predicted"], rows)


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return ""
    rows = [
        [
            one["run"],
            number(one["predicted"]),
            f"{number(one['low'])} to {number(one['high'])}",
            number(one["observed"]),
            "inside" if one["inside"] else "outside",
        ]
        for one in verdict["runs"]
    ]
    return f"<h2>Hold-out, predicted {escape(verdict['prediction_time'])}</h2>" + _table(
        ["run", "predicted", "95 % interval", "observed", ""], rows
    )


def _left_out(found: Analysis) -> str:
    rows = [[one["where"], one["reason"]] for one in found.told["data"]["excluded"]]
    return "<h2>Left out</h2>" + _table(["point", "why"], rows) if rows else ""
