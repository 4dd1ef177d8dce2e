"""A folder of runs as points of a scaling law: size, images, compute and loss of each, and what `vitscale fit` found, if it was run."""

import csv
from pathlib import Path
from typing import Any

from vitscale.metrics import JUDGES
from vitscale.metrics.system import EVALUATION_LOSS, TRAINING_LOSS
from vitscale.observe.dashboard.declared import JUDGED, place
from vitscale.observe.dashboard.fitted import curves, fitted, plan, verdict
from vitscale.observe.dashboard.folder import Runs
from vitscale.runfolder import ENVIRONMENT, METRICS, known, last_row, number, printable, read_object
from vitscale.scaling.seeds import over_seeds, setting_of, words

_NOT_STARTED = "not started"
_MOST_ROWS = 5000
_MOST_BYTES = 8 << 20


def sweep_view(runs: Runs, wanted: str) -> dict[str, Any] | None:
    """None: there is no such folder any more.  Points come from the runs themselves, so that they move while the sweep trains; what a run
    does not say of itself, runs.csv may."""
    place = runs.find_group(wanted)
    if place is None:
        return None
    begun = [one for one in runs.places()[0] if one.group == place.id or one.path.parent == place.path]
    table, fit, told = _table(place.path / "runs.csv"), read_object(place.path / "fit.json"), read_object(place.path / "sweep.json")
    planned, refused = (_listed(told, name, key) for name, key in (("runs", "name"), ("pruned", "run")))
    jobs = runs.jobs()
    points = []
    for one in begun:
        line = runs.line(one, jobs)
        points.append(_point(one.path, table.get(one.path.name, {})) | {
            "id": one.id, "name": one.name, "state": _NOT_STARTED if line["state"] == "new" else line["state"], "detail": line["detail"],
            "setting": setting_of(planned[one.path.name]) if one.path.name in planned else None})
    there = {one.path.name for one in begun}
    points += [_still_to_come(name, run) for name, run in planned.items() if name not in there]
    points += [_still_to_come(name, {}) | {"state": "refused", "detail": printable(str(run.get("reason", ""))[:300])}
               for name, run in refused.items() if name not in there]
    for point, level in zip(points, _levels(points), strict=True):
        point["level"] = level
    return {"name": place.name, "id": place.id, "judges": JUDGED, "points": points, "fit": fitted(fit), "curves": curves(fit, points),
            "verdict": verdict(place.path), "plan": plan(place.path), "seeds": _seeds(planned, points)}


def _listed(told: dict[str, Any], name: str, key: str) -> dict[str, dict[str, Any]]:
    """Of sweep.json, which anybody may have written: name -> what it says of the run."""
    rows = told.get(name)
    return {str(row[key]): row for row in (rows[:_MOST_ROWS] if isinstance(rows, list) else ()) if isinstance(row, dict) and key in row}


def _still_to_come(name: str, run: dict[str, Any]) -> dict[str, Any]:
    """A run of the sweep of which there is nothing yet."""
    whole = known(run.get("budget"))
    return {"parameters": known(run.get("n")), "images": None, "compute": None, "budget": known(run.get("c")) if whole is None else whole,
            "unique": known(run.get("u")), **dict.fromkeys(place(judge) for judge in JUDGES),
            "held_out": run.get("held_out") is True, "id": None,
            "name": printable(name[:200]), "state": _NOT_STARTED, "detail": "", "setting": setting_of(run) if run else None}


def _seeds(planned: dict[str, dict[str, Any]], points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings that several runs share, with the mean and the spread of those that are done, in words."""
    names = {printable(name[:200]): name for name in planned}
    measured = {names[point["name"]]: {judge.column: number(point[place(judge)]) for judge in JUDGES} for point in points
                if point["state"] == "done" and point["name"] in names}
    return [{"parameters": known(one["n"]), "images": known(one["d"]), "lr": known(one["lr"]), "batch": known(one["batch"]),
             **{place(judge): words(one[judge.column], one["runs"], judge.unit) for judge in JUDGES}}
            for one in over_seeds(list(planned.values()), measured)]


def _point(folder: Path, row: dict[str, str]) -> dict[str, Any]:
    """parameters, images, compute (FLOP so far), budget (FLOP of all of it), loss: of the last evaluation, else of the last step."""
    environment, step, evaluation = (read_object(folder / ENVIRONMENT), last_row(folder / METRICS, "loss"),
                                     last_row(folder / METRICS, EVALUATION_LOSS.column))
    size, images, flops = number(environment.get("parameters")), number(step.get("images")), number(environment.get("flops_per_image"))
    values = {"parameters": (size, "n"), "images": (images, "d"), "compute": (number(flops * images), "c"),
              "budget": (number(flops * number(environment.get("total_images"))), "budget"), "unique": (number(None), "u"),
              **{place(judge): (number(evaluation.get(judge.column)), judge.column) for judge in JUDGES}}
    if not evaluation:
        values[place(EVALUATION_LOSS)] = (number(step.get(TRAINING_LOSS.column)), EVALUATION_LOSS.column)
    known = {name: value if value == value else _told(row, column) for name, (value, column) in values.items()}
    return {name: value if value == value else None for name, value in known.items()} | {"held_out": row.get("held_out") == "True"}


def _told(row: dict[str, str], column: str) -> float:
    try:
        return number(float(row.get(column) or "nan"))
    except (ValueError, TypeError):
        return number(None)


def _levels(points: list[dict[str, Any]]) -> list[float | None]:
    """The budget that each point is of: points whose whole compute is nearly the same are of one."""
    known = [at for at, point in enumerate(points) if (point["budget"] or 0) > 0]
    found: list[float | None] = [None] * len(points)
    if known:
        import numpy as np

        from vitscale.scaling.approaches import budgets_of  # SciPy, only where there is a sweep
        from vitscale.scaling.points import Points

        compute = np.array([points[at]["budget"] for at in known])
        for at, level in zip(known, budgets_of(Points({"c": compute}, compute, tuple(points[at]["name"] for at in known))), strict=True):
            found[at] = float(level)
    return found


def _table(path: Path) -> dict[str, dict[str, str]]:
    """runs.csv: run -> its row; what cannot be read is not there."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return {row["run"]: row for _, row in zip(range(_MOST_ROWS), csv.DictReader(file), strict=False) if row.get("run")}
    except (OSError, csv.Error):
        return {}
