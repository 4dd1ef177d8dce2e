"""A sheet: texts, tables and charts one below the other, told in Python and drawn by pages/static/sheet.js."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitscale.pages.document import one_file

Part = dict[str, Any]       # what one of the functions below makes


@dataclass(frozen=True)
class DrawnLine:
    """Points, or a curve, of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None          # one of the eight of all pages; None: by `place`,
    place: float = 0.0          # from 0 to 1 on a scale from small to large
    curve: bool = False         # a line without points, and without a key
    dashed: bool = False
    names: Sequence[str] = ()   # of points: what each is called


def sheet(title: str, parts: Sequence[Part | None]) -> str:
    """The document, one file; None: a part that there is not."""
    return one_file(f"{title} · vitscale", {"title": title, "parts": [part for part in parts if part is not None]},
                    scripts=("pages/static/sheet.js",))


def heading(text: str) -> Part:
    return {"heading": text}


def words(text: str, kind: Literal["", "soft", "notice"] = "") -> Part:
    """A paragraph; `soft`: by the way, `notice`: what should not be overlooked."""
    return {"words": text, "kind": kind}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> Part:
    """The first column names the rows; the others are numbers, or text."""
    return {"heads": heads, "rows": rows, "right": list(range(1, len(heads))) if numbers else []}


def chart(title: str, unit: str, lines: Sequence[DrawnLine], *, xlabel: str, log: bool) -> Part:
    """A chart over a logarithmic axis.  Each point has a column of its own, though several may stand at one place."""
    places = sorted((x, number, at) for number, line in enumerate(lines) for at, x in enumerate(line.x))
    series: list[list[float | None]] = [[None] * len(places) for _ in lines]
    for column, (_, number, at) in enumerate(places):
        series[number][column] = lines[number].y[at]
    return {"chart": {"title": title, "unit": unit, "xlabel": xlabel, "log": log, "lines": [
                {"name": str(number), "label": line.label, "colour": {"place": line.place} if line.colour is None else line.colour,
                 "dots": not line.curve, "curve": line.curve, "dashed": line.dashed} for number, line in enumerate(lines)]},
            "x": [x for x, _, _ in places], "series": {str(number): {"mean": values} for number, values in enumerate(series)},
            "names": [lines[number].names[at] if lines[number].names else None for _, number, at in places]}
