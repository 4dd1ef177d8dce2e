"""How a run ended, for people and for scripts: outcome.json in the run folder."""

import time
from pathlib import Path
from typing import Any

from vitscale.checkpoint.files import write_json
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT

FILE = "outcome.json"
STATES = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong input", EXIT_FAILED: "failed", EXIT_REQUEUE: "stopped early"}


def write_outcome(run_folder: Path, exit_code: int, reason: str, **facts: Any) -> None:
    """{state, exit_code, reason, time, ...}; replaces that of an earlier attempt."""
    write_json(run_folder / FILE, {"state": STATES[exit_code], "exit_code": exit_code, "reason": reason, "time": time.time(), **facts})
