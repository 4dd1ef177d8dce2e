"""Medians with their spread, as a table or as JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.terminal import console, table


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
    rows = [(one.name, number(one.value), one.unit, "" if one.low is None or one.high is None or one.low == one.high else
             f"{number(one.low)} to {number(one.high)}", one.note) for one in figures]
    out = console()
    out.print(table(["what", "median", "", "least to most", ""], rows, words=(0, 2, 4), fold=True, title=title))
    brief = {name: value for name, value in facts.items() if not isinstance(value, dict | float)}
    out.print("; ".join(f"{name} {value}" for name, value in brief.items()), highlight=False, markup=False)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
