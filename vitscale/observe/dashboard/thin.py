"""Many recorded values as few that can be drawn: per piece of the axis the mean, and the least and the most, so that no peak is lost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def last_of_each(step: Floats) -> NDArray[np.bool_]:
    """(N,) -> (N,): which rows count.  Of steps that were repeated after a restart or a rollback the later rows do."""
    if len(step) == 0:
        return np.zeros(0, dtype=bool)
    least_after = np.append(np.fmin.accumulate(step[::-1])[::-1][1:], np.inf)
    return step < least_after


def thin(x: Floats, columns: Mapping[str, Floats], points: int, breaks: Floats | None = None) -> dict[str, Any]:
    """x (N,) not falling; columns of N -> {"x": [...], "series": {name: {"mean", "low", "high"}}, "rows": N}.

    With N <= points all values stay, as "mean" alone.  Else the axis is cut into `points` equal pieces; empty ones are left out.  Where
    `breaks` (N,) changes, such as the number of the attempt, a point without values keeps what is before and after from being joined.
    """
    size = len(x)
    if size == 0:
        return {"x": [], "series": {name: {"mean": []} for name in columns}, "rows": 0}
    if size <= points or x[-1] <= x[0]:
        starts, whole = np.arange(size), True
    else:
        piece = np.minimum(((x - x[0]) * (points / (x[-1] - x[0]))).astype(np.int64), points - 1)
        starts, whole = np.flatnonzero(np.append(True, piece[1:] != piece[:-1])), False
    at = x[starts] if whole else _mean(x, starts)
    gaps = np.zeros(0, dtype=np.int64)
    if breaks is not None:
        kind = breaks[starts]
        gaps = np.flatnonzero(kind[1:] != kind[:-1]) + 1
    series = {}
    for name, values in columns.items():
        if whole:
            series[name] = {"mean": plain(values, gaps)}
        else:
            series[name] = {"mean": plain(_mean(values, starts), gaps), "low": plain(np.fmin.reduceat(values, starts), gaps),
                            "high": plain(np.fmax.reduceat(values, starts), gaps)}
    between = (at[gaps - 1] + at[gaps]) / 2
    return {"x": np.round(np.insert(at, gaps, between), 3).tolist(), "series": series, "rows": size}


def chosen(x: Floats, weight: Floats, count: int) -> NDArray[np.int64]:
    """At most `count` rows, spread over x (N,): of each equal piece the one with the largest weight (N,)."""
    if len(x) <= count or x[-1] <= x[0]:
        return np.arange(len(x))[:count]
    piece = np.minimum(((x - x[0]) * (count / (x[-1] - x[0]))).astype(np.int64), count - 1)
    starts = np.flatnonzero(np.append(True, piece[1:] != piece[:-1]))
    known = np.nan_to_num(weight, nan=-np.inf)
    most = np.repeat(np.maximum.reduceat(known, starts), np.diff(np.append(starts, len(x))))
    hits = np.flatnonzero(known == most)
    return hits[np.append(piece[hits][1:] != piece[hits][:-1], True)]


def _mean(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Of the numbers in each piece; NaN where there is none."""
    there = np.isfinite(values)
    count = np.add.reduceat(there.astype(np.float64), starts)
    total = np.add.reduceat(np.where(there, values, 0.0), starts)
    return np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)


def plain(values: Floats, gaps: NDArray[np.int64] | Sequence[int] = ()) -> list[float | None]:
    """For JSON: six digits, None for NaN and at the gaps."""
    wide = np.insert(values, gaps, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 10.0 ** np.clip(5 - np.floor(np.log10(np.abs(wide))), -300, 300)
        short = np.where(np.isfinite(unit) & (wide != 0), np.round(wide * unit) / unit, wide)
    return [value if value == value else None for value in short.tolist()]
