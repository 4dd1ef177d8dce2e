"""Experiment trackers by name: the rows of metrics.jsonl, handed to TensorBoard, W&B or MLflow through accelerate's classes for them.

They read their own settings from the environment (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).  A tracker that fails costs a word in the log
and itself; the run goes on.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.errors import RecipeError

log = logging.getLogger(__name__)
FOLDER = "trackers"
_LEFT_OUT = ("step", "time", "attempt")


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for one whose library is not installed, before anything has begun."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        raise RecipeError(f"observe.trackers: {absent[0]} is not installed; pip install {absent[0]}, or leave it out")


class Trackers:
    """Of one process: only rank 0 has any.  Use as a context manager."""

    def __init__(self, names: Sequence[str], run_folder: Path, settings: Mapping[str, Any]) -> None:
        self._open: dict[str, Any] = {}
        if names:
            from accelerate.state import PartialState

            if PartialState._shared_state == {}:        # the engine `accelerate` has made it; to be asked for by their logging at all
                PartialState(cpu=True)
        for name in names:
            self._try(name, lambda name=name: self._begin(name, run_folder, settings))

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in list(self._open):
            self._try(name, self._open[name].finish)

    def row(self, row: Mapping[str, Any]) -> None:
        """A step or an evaluation: all of its columns that are numbers, under their own names."""
        if self._open and "step" in row and "event" not in row:
            numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in _LEFT_OUT}
            for name in list(self._open):
                self._try(name, lambda name=name: self._open[name].log(numbers, step=row["step"]))

    def _begin(self, name: str, run_folder: Path, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": str(run_folder / FOLDER)} if kind.requires_logging_directory else {}
        tracker = kind(run_folder.name, **folder)
        if hasattr(tracker, "start"):       # older ones start when they are made
            tracker.start()
        tracker.store_init_configuration(dict(flat(settings)))
        self._open[name] = tracker

    def _try(self, name: str, act: Any) -> None:
        try:
            act()
        except Exception as error:          # a server that does not answer must not end a run
            self._open.pop(name, None)
            log.warning("tracker %s is left: %s: %s", name, type(error).__name__, error)


def flat(settings: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """[(dotted key, value)] with values that every tracker takes: bool, int, float, or text."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            found += flat(value, name)
        else:
            found.append((name, value if isinstance(value, (bool, int, float, str)) else str(value)))
    return found
