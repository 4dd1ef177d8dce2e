"""A folder of runs as points of a scaling law: size, images, compute and loss of each, and what `vitscale fit` found, if it was run."""

import csv
from pathlib import Path
from typing import Any

from vitscale.cluster.runfolder import ENVIRONMENT, METRICS, last_row, printable, read_object
from vitscale.observe.dashboard.folder import Runs
from vitscale.observe.dashboard.table import number

_MOST_ROWS = 5000
_MOST_BYTES = 8 << 20


def sweep_view(runs: Runs, wanted: str) -> dict[str, Any] | None:
    """None: there is no such folder any more.  Points come from the runs themselves, so that they move while the sweep trains."""
    place = runs.find_group(wanted)
    if place is None:
        return None
    members, _, _ = runs.places()
    inside = [one for one in members if one.path.parent == place.path]
    points = [_point(one.path) | {"id": one.id, "name": one.name, "state": runs.line(one, runs.jobs())["state"]} for one in inside]
    return {"name": place.name, "id": place.id, "points": points, "fit": _plain(read_object(place.path / "fit.json")),
            "table": _table(place.path / "runs.csv")}


def _point(folder: Path) -> dict[str, Any]:
    """parameters, images, compute (FLOP so far), loss: of the last evaluation, else of the last step."""
    environment, row, evaluation = (read_object(folder / ENVIRONMENT), last_row(folder / METRICS, "loss"),
                                    last_row(folder / METRICS, "eval_loss"))
    size, images, flops = number(environment.get("parameters")), number(row.get("images")), number(environment.get("flops_per_image"))
    total = number(environment.get("total_images"))
    values = {"parameters": size, "images": images, "compute": flops * images, "budget": flops * total,
              "loss": number(evaluation.get("eval_loss", row.get("loss"))), "top1": number(evaluation.get("eval_top1"))}
    return {name: value if value == value else None for name, value in values.items()} | {"evaluated": "eval_loss" in evaluation}


def _table(path: Path) -> dict[str, Any] | None:
    """A small CSV file as columns and rows of text."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            rows = [[printable(cell[:80]) for cell in row[:24]] for _, row in zip(range(_MOST_ROWS), csv.reader(file), strict=False)]
    except (OSError, csv.Error):
        return None
    return {"columns": rows[0], "rows": rows[1:]} if rows else None


def _plain(value: Any, depth: int = 0) -> Any:
    """What a file says, cut to what a page can show."""
    if depth > 6:
        return None
    if isinstance(value, dict):
        return {printable(str(key)[:80]): _plain(inner, depth + 1) for key, inner in list(value.items())[:200]}
    if isinstance(value, list):
        return [_plain(inner, depth + 1) for inner in value[:500]]
    if isinstance(value, float) and value != value:
        return None
    return printable(value[:500]) if isinstance(value, str) else value
