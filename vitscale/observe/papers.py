"""What a run leaves for people at its end: report.html and the model card.  Never the reason that it fails."""

import logging
import time
from pathlib import Path

from vitscale.observe.modelcard import write_card
from vitscale.observe.report import write_report

log = logging.getLogger(__name__)


def leave_papers(run_folder: Path) -> None:
    """Write both, from the files that the run has written.  Only for the holder of the run folder, after the outcome."""
    started = time.perf_counter()
    try:
        report = write_report(run_folder)
        write_card(run_folder)
    except Exception as error:      # the run is over and sound, whatever is wrong with its papers
        log.warning("the report or the model card could not be written: %s; `vitscale report %s` tries again", error, run_folder)
        return
    log.info("report %s (%.1f s)", report, time.perf_counter() - started)
