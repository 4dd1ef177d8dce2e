"""A run folder as the login node sees it: names of its files, and reading what may be half-written or damaged."""

import json
import os
from pathlib import Path
from typing import Any

JOB = "job.json"                # the SLURM jobs of the run
OUTCOME = "outcome.json"
METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
LEASES = "lease"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; {} if there is none, or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def highest_lease(folder: Path) -> int:
    """The number of the last attempt that held the run folder; 0 if none did."""
    try:
        return max((int(path.name) for path in (folder / LEASES).iterdir() if path.name.isdigit()), default=0)
    except OSError:
        return 0
