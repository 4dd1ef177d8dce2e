"""report.html: the run's page with its numbers in it, one file that needs neither server nor network; left at a run's end with the card."""

import base64
import logging
import time
from pathlib import Path
from typing import Any

from vitscale.errors import ClusterError
from vitscale.files import write_atomically
from vitscale.observe.dashboard.assets import OWN_SCRIPTS, OWN_SHEETS
from vitscale.observe.dashboard.folder import Runs
from vitscale.observe.dashboard.table import Table
from vitscale.observe.dashboard.view import run_facts, run_view
from vitscale.observe.modelcard import write_card
from vitscale.pages.document import one_file
from vitscale.runfolder import METRICS

log = logging.getLogger(__name__)
FILE = "report.html"
_POINTS = 700
_PICTURES = 24


def write_report(run_folder: Path, out: Path | None = None) -> Path:
    """Write it beside the run's other files, or to `out`; returns where.  Raises ClusterError if that cannot be."""
    path = out or run_folder / FILE
    try:
        write_atomically(path, render_report(run_folder))
    except OSError as error:
        raise ClusterError(f"{path}: the report cannot be written ({error.strerror or error}); name another file with --out") from None
    return path


def render_report(run_folder: Path) -> str:
    """The page's run view, frozen: the same scripts and the same numbers, both axes, all of the record read."""
    runs = Runs(run_folder)
    places, _, _ = runs.places()
    if [place.path for place in places] != [run_folder]:
        raise ClusterError(f"{run_folder}: holds no run (no metrics.jsonl, recipe.yaml or outcome.json)")
    table = Table(run_folder / METRICS)
    table.refresh()
    shared = {"run": runs.line(places[0], None), "now": time.time(), **run_facts(run_folder)}
    held: dict[str, Any] = {axis: {**shared, **run_view(run_folder, table, axis=axis, points=_POINTS)} for axis in ("time", "step")}
    held["pictures"] = _pictures(run_folder, len(shared["quarantine"]["rows"]))
    return one_file(f"{places[0].name} · vitscale", held, sheets=OWN_SHEETS, scripts=OWN_SCRIPTS)


def _pictures(run_folder: Path, rows: int) -> dict[str, str]:
    """Of the samples that could not be used: row -> data URL."""
    if not rows:
        return {}
    from vitscale.observe.dashboard.pictures import picture

    found = {number: picture(run_folder, number) for number in range(min(rows, _PICTURES))}
    return {str(number): f"data:image/jpeg;base64,{base64.b64encode(drawn).decode()}" for number, drawn in found.items()
            if isinstance(drawn, bytes)}


def leave_papers(run_folder: Path) -> None:
    """Write report and model card, from the files that the run has written.  Only for the holder of the run folder, after the outcome."""
    started = time.perf_counter()
    try:
        report = write_report(run_folder)
        write_card(run_folder)
    except Exception as error:      # the run is over and sound, whatever is wrong with its papers
        log.warning("the report or the model card could not be written: %s; `vitscale report %s` tries again", error, run_folder)
        return
    log.info("report %s (%.1f s)", report, time.perf_counter() - started)
