"""Medians with their spread, as a table or as JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from vitscale.data.report import console


@dataclass(frozen=True)
class Figure:
    """What was measured: the median, the least and the most."""

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    note: str = ""


def spread(name: str, values: Sequence[float], unit: str = "", note: str = "") -> Figure:
    return Figure(name, statistics.median(values), unit, min(values), max(values), note)


def show(title: str, figures: Sequence[Figure], facts: Mapping[str, Any], as_json: bool) -> None:
    """On standard output."""
    if as_json:
        print(json.dumps({"title": title, **facts, "figures": [vars(figure) for figure in figures]}, indent=1))
        return
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name, justify in (("what", "left"), ("median", "right"), ("", "left"), ("least to most", "right"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")        # type: ignore[arg-type]
    for figure in figures:
        span = "" if figure.low is None or figure.high is None or figure.low == figure.high else (
            f"{number(figure.low)} to {number(figure.high)}")
        table.add_row(figure.name, number(figure.value), figure.unit, span, figure.note)
    out = console()
    out.print(table, markup=False)
    brief = {name: value for name, value in facts.items() if not isinstance(value, dict | float)}
    out.print("; ".join(f"{name} {value}" for name, value in brief.items()), highlight=False, markup=False)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
