"""The points that a law is fitted to: named variables, a metric turned into something that falls, and what was left out and why."""

import csv
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.errors import DataError
from vitscale.scaling.solve import Array

_SUFFIX = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"^([-+]?[0-9.,]+(?:[eE][-+]?[0-9]+)?)\s*([KMBGT]?)$", re.ASCII)
ROLES = {"n": "parameters of the model", "d": "samples (or tokens) seen", "u": "unique samples", "c": "FLOPs of the training",
         "x": "the variable", "t": "FLOPs, of a shape law"}


@dataclass(frozen=True)
class Points:
    """`x` by role (n,), all positive; `y` (n,) as fitted: the metric, or what it lacks to its bound."""

    x: Mapping[str, Array]
    y: Array
    run: tuple[str, ...]  # points of one run are drawn together in a bootstrap
    metric: str = "loss"
    bound: float | None = None  # of a metric that rises: y is bound - metric
    excluded: tuple[Mapping[str, Any], ...] = ()  # {where, reason}
    source: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # columns that are no numbers, by name

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: Any) -> "Points":
        """Some of the points, by mask or indices; what was excluded is kept on record."""
        index = np.flatnonzero(chosen) if np.asarray(chosen).dtype == bool else np.asarray(chosen, dtype=int)
        return replace(self, x={role: values[index] for role, values in self.x.items()}, y=self.y[index],
                       run=tuple(self.run[i] for i in index),
                       groups={name: tuple(values[i] for i in index) for name, values in self.groups.items()})

    def hash(self) -> str:
        """sha256 of variables, values and runs; it changes with any number of any point, not with their order."""
        rows = sorted("|".join([self.run[i], *(f"{role}={self.x[role][i]!r}" for role in sorted(self.x)), repr(float(self.y[i]))])
                      for i in range(len(self)))
        return hashlib.sha256("\n".join([self.metric, repr(self.bound), *rows]).encode()).hexdigest()

    @property
    def fitted(self) -> str:
        """What `y` is, in words: the metric, or its bound less the metric."""
        return self.metric if self.bound is None else f"{self.bound:g} - {self.metric}"

    def told(self, y: Array) -> Array:
        """From what is fitted back to the metric."""
        return y if self.bound is None else self.bound - y


@dataclass(frozen=True)
class Columns:
    """Which column is what.  A column may be scaled: `Model Size*1e6`."""

    roles: Mapping[str, str]  # role -> column
    metric: str
    higher: bool = False  # the metric rises as models get better
    bound: float = 1.0  # of such a metric: its best value
    run: str | None = None
    where: Sequence[str] = ()  # COLUMN=VALUE: only such rows
    flops_per: float | None = None  # FLOPs = flops_per x n x d where no column gives them
    keep: Sequence[str] = ()  # further columns, as text


def read_number(text: str) -> float:
    """`7e7`, `70M`, `1,500`, `3B` -> a number; what is none, nan."""
    match = _NUMBER.match(text.strip())
    if match is None:
        return math.nan
    try:
        return float(match[1].replace(",", "")) * _SUFFIX[match[2]]
    except ValueError:
        return math.nan


def read_csv(path: Path, columns: Columns) -> Points:
    """The points of a CSV.  Raises DataError that names the columns there are when one is missing."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            sample = file.read(1 << 16)
            file.seek(0)
            delimiter = max(",;\t", key=sample.partition("\n")[0].count)
            reader = csv.DictReader(file, delimiter=delimiter)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not rows:
        raise DataError(f"{path}: holds no rows" + (f"; its columns are {', '.join(header)}" if header else ""))
    filters = [_pair(one, header, path) for one in columns.where]
    kept = [(number, row) for number, row in enumerate(rows, 2) if all((row.get(name) or "").strip() == value for name, value in filters)]
    if not kept:
        raise DataError(f"{path}: no row has {' and '.join(columns.where)}")
    _refuse_mixed(kept, header, columns, path)
    roles = {role: _column(column, header, path) for role, column in columns.roles.items()}
    metric, scale = _column(columns.metric, header, path)
    run = _column(columns.run, header, path)[0] if columns.run else None
    extra = [_column(name, header, path)[0] for name in columns.keep]
    found = []
    for number, row in kept:
        values = {role: read_number(row.get(name) or "") * factor for role, (name, factor) in roles.items()}
        found.append({"where": f"row {number}", "run": (row.get(run) or "") if run else f"row {number}", **values,
                      "metric": read_number(row.get(metric) or "") * scale, **{f"={name}": row.get(name) or "" for name in extra}})
    return make_points(found, roles=list(roles), metric=columns.metric, higher=columns.higher, bound=columns.bound,
                       flops_per=columns.flops_per, source=str(path), keep=columns.keep)


def _refuse_mixed(rows: Sequence[tuple[int, Mapping[str, str]]], header: Sequence[str], columns: Columns, path: Path) -> None:
    """A column that says which metric a row tells must say one thing: losses and accuracies make no law together."""
    for name in header:
        if name.lower() in ("metric", "metric_name", "metrics") and name not in (columns.metric, *columns.keep):
            values = sorted({(row.get(name) or "").strip() for _, row in rows})
            if len(values) > 1:
                raise DataError(f"{path}: rows of several metrics ({', '.join(values[:5])}) make no law together: choose by "
                                f"--where '{name}={values[0]}', "
                                f"or fit each by --by {name}")


def make_points(rows: Iterable[Mapping[str, Any]], *, roles: Sequence[str], metric: str, higher: bool = False, bound: float = 1.0,
                flops_per: float | None = None, source: str = "", keep: Sequence[str] = ()) -> Points:
    """Rows {where, run, roles..., metric} -> points; a row that cannot be used is left out with its reason, never silently."""
    good: list[Mapping[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        reason = row.get("reason") or _unusable(row, roles, higher, bound)
        key = (*(row.get(role) for role in roles), row.get("metric"), *(row.get(f"={name}") for name in keep))
        if reason is None and key in seen:
            reason = f"the same point as {seen[key]}"
        if reason is not None:
            excluded.append({"where": row["where"], "reason": reason})
            continue
        seen[key] = row["where"]
        good.append(row)
    x = {role: np.array([float(row[role]) for row in good]) for role in roles}
    if flops_per is not None and "c" not in x and {"n", "d"} <= set(x):
        x["c"] = flops_per * x["n"] * x["d"]
    value = np.array([float(row["metric"]) for row in good])
    return Points(x, bound - value if higher else value, tuple(str(row["run"]) for row in good), metric, bound if higher else None,
                  tuple(excluded), source, {name: tuple(str(row[f"={name}"]) for row in good) for name in keep})


def _unusable(row: Mapping[str, Any], roles: Sequence[str], higher: bool, bound: float) -> str | None:
    for role in roles:
        value = row.get(role)
        if value is None or not math.isfinite(value):
            return f"{ROLES.get(role, role)} is no number"
        if value <= 0:
            return f"{ROLES.get(role, role)} is not positive"
    value = row.get("metric")
    if value is None or not math.isfinite(value):
        return "the metric is not finite"
    if higher and value >= bound:
        return f"the metric {value:g} is not below its bound {bound:g}"
    if not higher and value <= 0:
        return f"the metric {value:g} is not positive"
    return None


def check_points(points: Points, needed: int, variables: Sequence[str], what: str) -> None:
    """Raises DataError when there are too few points for a law, or a variable of it never changes."""
    left_out = (
        f"; {len(points.excluded)} were left out: {points.excluded[0]['where']}: {points.excluded[0]['reason']}" if points.excluded else "")
    if len(points) < needed:
        raise DataError(
            f"{points.source}: {what} has {needed - 1} parameters and wants {needed} points or more, got {len(points)}{left_out}")
    for role in variables:
        values = points.x[role]
        if np.ptp(np.log(values)) < 1e-9:
            raise DataError(
                f"{points.source}: all {len(points)} points have the same {ROLES[role]} ({values[0]:g}): {what} cannot tell how "
                f"the metric depends on it; add other values, or fit a law of the other variable alone (--x)")


def _column(spec: str, header: Sequence[str], path: Path) -> tuple[str, float]:
    """`NAME` or `NAME*FACTOR` -> (name, factor)."""
    if spec in header:
        return spec, 1.0
    name, star, factor = spec.rpartition("*")
    if star and name.strip() in header and math.isfinite(read_number(factor)):
        return name.strip(), read_number(factor)
    raise DataError(f"{path}: has no column {spec!r}; its columns are {', '.join(header)}; name them by --n, --d, --x, --loss and others")


def _pair(text: str, header: Sequence[str], path: Path) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in header:
        raise DataError(f"{path}: --where wants COLUMN=VALUE with one of its columns {', '.join(header)}; got {text!r}")
    return name, value
