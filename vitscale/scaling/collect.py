"""From the run folders of a sweep to its points: what each run cost and where it ended; what is missing, and why."""

import math
from pathlib import Path
from typing import Any

from vitscale.cluster.state import state_of
from vitscale.errors import DataError
from vitscale.metrics import COLUMNS, JUDGES
from vitscale.runfolder import number
from vitscale.scaling.points import Points, make_points
from vitscale.scaling.runner import manifest, outcome_of


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """runs.csv: one row for each run of the sweep, in its order, done or not.  Raises DataError where there is no sweep."""
    told = manifest(folder)
    if not told.get("runs"):
        raise DataError(
            f"{folder}: is no sweep's folder (no sweep.json); `vitscale sweep RECIPE` makes one, and `vitscale fit` takes a CSV too")
    rows = []
    for run in told["runs"]:
        state = state_of(folder / "runs" / run["name"], None)
        outcome = outcome_of(folder / "runs" / run["name"])
        seen = outcome.get("images")
        done = seen if isinstance(seen, int) and run["d"] <= seen < run["d"] + run["batch"] else run["d"]  # the last batch is a whole one
        row: dict[str, Any] = {
            "run": run["name"],
            "model": run.get("model", ""),  # not in the manifests of old
            "n": run["n"],
            "d": done,
            "u": run["u"],
            "c": run["c"] * done / run["d"],
            "budget": run["budget"],
            **(run["shape"] or {}),
            "lr": run["lr"],
            "batch": run["batch"],
            "seed": run["seed"],
            "held_out": run["held_out"],
            "state": "not started" if state.name == "new" else state.name,
            **{judge.column: number(outcome.get(judge.column)) for judge in reversed(JUDGES)},
        }
        row["reason"] = _why_not(row, outcome, told["metric"], state.detail)
        rows.append(row)
    return rows


def largest_of(name: str) -> tuple[list[str], list[str]]:
    """Of the folder of a sweep the run folders of its largest budget (without budgets: of the most images), else the name itself.

    -> those that are done, and a line for each that is not.  Raises DataError if none is.
    """
    folder = Path(name)
    if not (folder / "sweep.json").is_file():
        return [name], []
    level = {run["name"]: float(run["budget"] or run["d"]) for run in manifest(folder)["runs"]}
    largest = [row for row in rows_of(folder) if level[row["run"]] == max(level.values())]
    done = [str(folder / "runs" / row["run"]) for row in largest if row["reason"] is None]
    left_out = [f"{row['run']}: {row['reason']}" for row in largest if row["reason"] is not None]
    if not done:
        raise DataError(f"{folder}: of its largest budget no run is done: `vitscale sweep` resumes it; or name the run folders\n  "
                        + "\n  ".join(left_out))
    return done, left_out


def _why_not(row: dict[str, Any], outcome: dict[str, Any], metric: str, detail: str) -> str | None:
    if row["state"] != "done":
        return f"not finished: {row['state']}" + (f": {detail}" if detail else "")
    if outcome.get("images") != row["d"]:
        return f"ended after {outcome['images']} of {row['d']} images"
    if not math.isfinite(row[metric]):
        return f"its {metric} is not finite, or there was no evaluation"
    return None


def points_of(rows: list[dict[str, Any]], folder: Path, metric: str, held_out: bool) -> Points:
    """The points to fit, or those that are held out.  Samples seen again and again are told by u."""
    chosen = [row for row in rows if row["held_out"] == held_out]
    repeated = any(row["d"] > row["u"] for row in chosen) and len({row["u"] for row in rows}) > 1
    given = [
        {"where": row["run"], "run": row["run"], **{role: row[role] for role in "nduc"}, "metric": row[metric], "reason": row["reason"]}
        for row in chosen]
    higher = COLUMNS[metric].better == "higher"
    return make_points(given, roles=("n", "d", "c", *("u" if repeated else "")), metric=metric, higher=higher, source=str(folder))
