"""All that the page of one run shows, as plain values: the page asks for it again and again, the report holds it once."""

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import vitscale
from vitscale.cluster.status import LARGEST_RECIPE_BYTES
from vitscale.counts import plural
from vitscale.metrics import COLUMNS, OF_EVALUATIONS, OF_STEPS, is_evaluation, text
from vitscale.metrics.system import BUCKETS, PHASES, SLOWEST
from vitscale.observe.dashboard.declared import JUDGED, PANELS
from vitscale.observe.dashboard.evaluated import evaluation
from vitscale.observe.dashboard.table import Table, sampled
from vitscale.observe.dashboard.thin import Floats, chosen, last_of_each, plain, thin
from vitscale.recipe.redact import redact
from vitscale.runfolder import ENVIRONMENT, EVALUATION, GOODPUT, OUTCOME, RECIPE, number, printable, read_object

CURVES = tuple(metric.column for metric in OF_STEPS if metric.curve is not None)
ATTEMPTS, QUARANTINE = "attempts.jsonl", "quarantine.jsonl"
_ATTEMPT = ("attempt", "started", "step", "ranks", "cause", "reason", "host", "node", "job")
_HEAT = 240             # columns of the picture of the ranks' times
_RANKS = 256            # rows of it; of more ranks, neighbours are drawn as the slowest of them
_MARKS = 400
_SAMPLES = 200          # quarantined samples that are listed
_RECENT = 100           # steps over which a number that an alarm asks is taken
_PREVIEW = 400          # rows that stand for what is not read yet
_MOST_BYTES = 16 << 20  # of a file beside the metrics


def run_view(folder: Path, table: Table, *, axis: str = "time", points: int = 600, start: float | None = None,
             end: float | None = None) -> dict[str, Any]:
    """`axis`: time (seconds since 1970) or step; [start, end] of it, or all.  `table` is shown as far as it has been read; few rows,
    spread over the rest, stand for that."""
    columns, where = table.columns, table.where
    notices = [f"metrics.jsonl: left out {plural(table.broken, 'line')} that could not be read"] if table.broken else []
    if table.trouble:
        notices.append(f"metrics.jsonl cannot be read: {table.trouble}")
    if table.read_ratio < 1:
        columns, where = _with_preview(table)
    step, moment = columns["step"], _rising(columns["time"])
    stands, evaluations = table.standing()
    if axis == "step":
        stands = np.append(stands, np.ones(len(step) - len(stands), dtype=bool))        # those of the preview
        kept = np.flatnonzero(stands & last_of_each(step) & np.isfinite(step))
        x, kind = step[kept], None
    else:
        kept = np.flatnonzero(np.isfinite(moment))
        x, kind = moment[kept], columns["attempt"][kept]
    if start is not None or end is not None:
        low, high = np.searchsorted(x, [-math.inf if start is None else start, math.inf if end is None else end])
        low, high = max(int(low) - 1, 0), min(int(high) + 1, len(x))        # the lines go on to the edges
        kept = kept[low:high]
        x, kind = x[low:high], None if kind is None else kind[low:high]
    shown = {name: columns[name][kept] for name in CURVES if np.isfinite(columns[name]).any()}
    curves = thin(x, shown, points, kind)
    attempts = read_lines(folder / ATTEMPTS)
    return {
        "axis": axis, **curves, "read_ratio": round(table.read_ratio, 3), "recorded": table.rows,
        "nonfinite": int((columns["applied"] == 0).sum()),
        "latest": {name: _short(_last(columns[name])) for name in ("step", "images", *CURVES)},
        "evaluations": _evaluations(evaluations, axis), "marks": _marks(table, attempts, axis),
        "gaps": _gaps(table, moment, columns["attempt"]) if axis == "time" else [],
        "heat": _heat(table, x, columns[SLOWEST.column][kept], where[kept], kind),
        "notices": notices + _collapse(folder, table.columns, evaluations) + _version_notices(folder),
    }


def run_facts(folder: Path) -> dict[str, Any]:
    """What the run is, apart from its curves: books, faults, samples, environment, recipe."""
    outcome, books, environment = (read_object(folder / name) for name in (OUTCOME, GOODPUT, ENVIRONMENT))
    seconds = books.get("seconds")
    if number(outcome.get("time")) >= number(books.get("time")) and isinstance(outcome.get("run_seconds"), dict):
        seconds = outcome["run_seconds"]        # at the very end of a run its books may be a second old
    spent = {str(name): number(value) for name, value in (seconds.items() if isinstance(seconds, dict) else ())}
    spent = {name: value for name, value in spent.items() if value > 0}
    wall = sum(spent.values())
    samples = read_lines(folder / QUARANTINE)
    attempts = read_lines(folder / ATTEMPTS)
    versions = outcome.get("versions", environment.get("versions"))
    return {
        "goodput": {name: spent[name] for name in [*BUCKETS, *sorted(set(spent) - set(BUCKETS))] if name in spent},
        "goodput_ratio": spent.get("train", 0.0) / wall if wall > 0 else None,
        "phases": list(PHASES), "panels": PANELS, "judges": JUDGED,
        "attempts": [{key: _short(row.get(key)) for key in _ATTEMPT} for row in attempts[-_MARKS:]],
        "quarantine": {"count": len(samples), "reasons": Counter(str(_short(row.get("reason"))) for row in samples).most_common(20),
                       "rows": [{key: _short(row.get(key)) for key in ("step", "split", "shard", "key", "reason", "detail")}
                                for row in samples[:_SAMPLES]]},
        "outcome": {key: _short(outcome.get(key)) for key in ("state", "cause", "reason", "exit_code", "time", "step", "images")
                    if key in outcome},
        "evaluated": evaluation(folder),
        "best": _flat(outcome.get("best")),
        "environment": {name: value for name, value in (_flat(environment) | _flat(versions)).items() if name != "directory"},
        "recipe": _recipe_text(folder),
    }


def _rising(moment: Floats) -> Floats:
    """A clock that was put back does not make the curve run backwards."""
    return np.where(np.isfinite(moment), np.fmax.accumulate(moment), np.nan) if len(moment) else moment


def _last(values: Floats) -> float | None:
    there = np.flatnonzero(np.isfinite(values[-1000:]))
    return float(values[-1000:][there[-1]]) if len(there) else None


def _with_preview(table: Table) -> tuple[dict[str, Floats], Floats]:
    rows = sampled(table.path, _PREVIEW, int(table.read_ratio * table.size))
    columns = {name: np.append(values, [number(row.get(name)) for row in rows]) for name, values in table.columns.items()}
    return columns, np.append(table.where, np.full(len(rows), np.nan))


def _evaluations(found: list[dict[str, Any]], axis: str) -> dict[str, list[Any]]:
    """Columns of the evaluations; of one step the last."""
    rows = {number(row.get("step")): row for row in found}
    if axis == "time":
        ordered = sorted((number(row.get("time")), step, row) for step, row in rows.items() if number(row.get("time")) > 0 and step >= 0)
    else:
        ordered = sorted((step, step, row) for step, row in rows.items() if step >= 0)
    names = [name for metric in OF_EVALUATIONS for name in (metric.column, metric.averaged)]
    columns = {name: plain(np.array([number(row.get(name)) for _, _, row in ordered])) for name in names}
    return {"x": [round(at, 3) for at, _, _ in ordered], "step": [int(step) for _, step, _ in ordered],
            **{name: values for name, values in columns.items() if any(value is not None for value in values)}}


def _marks(table: Table, attempts: list[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """What happened at single moments: starts after the first, checkpoints, rollbacks."""
    found = [(row, "restart", f"attempt {_short(row.get('attempt'))}, after: {_short(row.get('cause'))}") for row in attempts[1:]]
    for row in table.apart:
        if row.get("event") == "checkpoint":
            found.append((row, "checkpoint", f"checkpoint of step {_short(row.get('step'))}, {_short(row.get('seconds'))} s"))
        elif row.get("event") == "rollback":
            found.append((row, "rollback", f"back to step {_short(row.get('to_step'))}: {_short(row.get('cause'))}"))
    marks = [{"x": number(row.get(axis)), "kind": kind, "text": text} for row, kind, text in found if number(row.get(axis)) >= 0]
    rare = [mark for mark in marks if mark["kind"] != "checkpoint"][-_MARKS:]
    checkpoints = [mark for mark in marks if mark["kind"] == "checkpoint"]
    return sorted([*rare, *checkpoints[:: len(checkpoints) // _MARKS + 1]], key=lambda mark: mark["x"])


def _gaps(table: Table, moment: Floats, attempt: Floats) -> list[list[float]]:
    """[from, to] of the times between attempts: from the last that one recorded, a step or an evaluation, to the next one's first step."""
    known = np.flatnonzero(np.isfinite(moment) & np.isfinite(attempt))
    turns = np.flatnonzero(np.diff(attempt[known])).tolist()
    ends: dict[float, float] = {}
    for row in table.apart:
        if is_evaluation(row) and number(row.get("time")) > 0:
            ends[number(row.get("attempt"))] = number(row.get("time"))
    found = []
    for last, first in ((known[at], known[at + 1]) for at in turns):
        end = min(max(float(moment[last]), ends.get(float(attempt[last]), 0.0)), float(moment[first]))
        found.append([round(end, 3), round(float(moment[first]), 3)])
    return found[-_MARKS:]


def _heat(table: Table, x: Floats, slowest: Floats, where: Floats, attempt: Floats | None) -> dict[str, Any] | None:
    """Each rank's own seconds of a step, in rows that were the slowest around them: {"x", "ranks": [[rank's values], ...], "attempt"}."""
    timed = np.flatnonzero(np.isfinite(slowest) & np.isfinite(where))
    rows: list[tuple[int, list[float]]] = []
    for at in timed[chosen(x[timed], slowest[timed], _HEAT)].tolist():
        own = table.row_at(where[at]).get("own_s")
        if isinstance(own, list) and own:
            rows.append((at, [number(value) for value in own]))
    ranks = max((len(own) for _, own in rows), default=0)
    if ranks < 2:
        return None
    kept = np.array([at for at, own in rows if len(own) == ranks])
    grid = np.array([own for _, own in rows if len(own) == ranks])
    together = -(-ranks // _RANKS)
    grid = np.fmax.reduceat(grid, np.arange(0, ranks, together), axis=1)
    return {"x": np.round(x[kept], 3).tolist(), "ranks": [plain(line) for line in grid.T], "together": together, "num_ranks": ranks,
            "attempt": None if attempt is None else plain(attempt[kept])}


def _collapse(folder: Path, columns: dict[str, Floats], evaluations: list[dict[str, Any]]) -> list[str]:
    """A line for each number that says of the features, past a tenth of the run, that they tell images no longer apart: as the alert."""
    total, seen = number(read_object(folder / ENVIRONMENT).get("total_images")), columns["images"][-_RECENT:]
    if not total > 0 or not np.nanmax(seen, initial=0.0) > total / 10:
        return []
    found = []
    for metric in COLUMNS.values():
        if metric.least is None:
            continue
        ended = np.array([number(row.get(metric.column)) for row in evaluations[-1:]])
        recent = columns[metric.column][-_RECENT:] if metric in OF_STEPS else ended
        told = recent[np.isfinite(recent)]
        if len(told) and (value := float(np.median(told))) < metric.least:
            title = metric.title or (metric.curve.compared if metric.curve else metric.column)
            found.append(f"{title} is {text(value, metric.unit)}, below {text(metric.least, metric.unit)}: features tell images no longer "
                         "apart. Is the teacher too sharp or too even (objective.teacher_temp, centring, momentum), or optim.lr too high?")
    return found


def _version_notices(folder: Path) -> list[str]:
    """A word if a newer vitscale wrote the run."""
    for name in (OUTCOME, ENVIRONMENT):
        versions = read_object(folder / name).get("versions")
        wrote = versions.get("vitscale") if isinstance(versions, dict) else None
        if isinstance(wrote, str) and _version(wrote) > _version(vitscale.__version__):
            return [f"this run was written by vitscale {printable(wrote[:40])}, this page is of {vitscale.__version__}: what it does not "
                    "know is left out; `pip install --upgrade vitscale` shows the rest"]
    return []


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:3]
    return tuple(int(part) if part.isdecimal() and len(part) < 9 else 0 for part in parts)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole rows of a small file of JSON lines; what is none is passed over."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_MOST_BYTES).split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _short(value: Any) -> Any:
    """A number, or text that is fit to be shown."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        known = number(value)
        return None if known != known else value if isinstance(value, int) else float(f"{known:.6g}") if known < 1e6 else known
    return redact(printable(str(value)[:500]))


def _flat(value: Any) -> dict[str, Any]:
    """The first level of what a file says; lists as text."""
    if not isinstance(value, dict):
        return {}
    return {printable(str(key)[:60]): _short(_joined(inner)) for key, inner in list(value.items())[:60] if not isinstance(inner, dict)}


def _joined(value: Any) -> Any:
    return ", ".join(map(str, _few(value))) if isinstance(value, list) else value


def _few(values: Iterable[Any], most: int = 16) -> list[Any]:
    listed = list(values)
    return listed if len(listed) <= most else [*listed[:most], f"and {len(listed) - most} more"]


def _recipe_text(folder: Path) -> str:
    try:
        with open(folder / RECIPE, encoding="utf-8", errors="replace") as file:
            text = file.read(LARGEST_RECIPE_BYTES)
    except OSError:
        return ""
    return redact("\n".join(printable(line) for line in text.splitlines()))


def fingerprint(folder: Path, table_size: int) -> str:
    """Changes whenever what the page shows may have."""
    files = [table_size]
    for name in (OUTCOME, ATTEMPTS, QUARANTINE, RECIPE, ENVIRONMENT, EVALUATION):
        try:
            files.append((folder / name).stat().st_mtime_ns)
        except OSError:
            files.append(0)
    return f"{hash(tuple(files)) & 0xFFFFFFFFFFFF:012x}-{int(time.time()) // 3600}"
