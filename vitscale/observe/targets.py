"""Where exporters announce themselves to Prometheus: RUNS/.prometheus/targets/RUN@NODE.json, files of its file_sd.

One folder for all runs, since Prometheus takes a star in the last part of a path alone.  Needs no torch.
"""

import logging
import re
from pathlib import Path

log = logging.getLogger(__name__)
FOLDER = Path(".prometheus") / "targets"


def target_file(run_folder: Path, node: str) -> Path:
    """No run's name holds an @, so no two runs and nodes meet in one file."""
    return run_folder.parent / FOLDER / f"{run_folder.name}@{re.sub(r'[^A-Za-z0-9._-]', '_', node)}.json"


def withdraw(run_folder: Path) -> None:
    """Remove what earlier attempts of a run have left there.  For the holder of the run folder, before its exporters open."""
    folder = run_folder.parent / FOLDER
    for path in folder.glob(f"{run_folder.name}@*.json") if folder.is_dir() else ():
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s, of an earlier attempt, cannot be removed (%s)", path, error)
