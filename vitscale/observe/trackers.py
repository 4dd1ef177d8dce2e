"""Experiment trackers by name: the rows of metrics.jsonl, handed to TensorBoard, W&B or MLflow (vitscale/observe/tracked.py).

They read their own settings from the environment (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...).  A tracker that fails costs a word in the log
and itself; one that does not answer costs its rows: each has a thread of its own, and the run waits for none of them.
"""

import functools
import importlib.util
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.counts import plural
from vitscale.errors import RecipeError
from vitscale.metrics import is_evaluation
from vitscale.observe.tracked import KINDS, Begins, Tracked

log = logging.getLogger(__name__)
_LEFT_OUT = ("step", "time", "attempt")
_MOST = 4096        # rows that wait for a tracker
FINISH_S = 60.0     # for all trackers together to take what waits and to end


def check_trackers(names: Sequence[str]) -> None:
    """Raises RecipeError for one whose library is not installed, before anything has begun."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        raise RecipeError(f"observe.trackers: {absent[0]} is not installed; pip install {absent[0]}, or leave it out")


class Trackers:
    """Of one process: only rank 0 has any.  Use as a context manager.

    `step`: from which this attempt goes on; `recorded`: the last step that attempts before it have recorded; `evaluated`: the last one
    whose evaluation they have.  At the end the rows that wait are handed over, and each tracker is asked to finish: for at most
    `patience_s` seconds in all.
    """

    def __init__(self, names: Sequence[str], run_folder: Path, settings: Mapping[str, Any], patience_s: float = FINISH_S, *,
                 step: int = 0, recorded: int = 0, evaluated: int = 0) -> None:
        self.patience_s = patience_s
        self._evaluated = step if evaluated == step else -1     # an evaluation that is owed may have been made, and not been saved
        if names:
            from accelerate.state import PartialState

            if PartialState._shared_state == {}:        # the engine `accelerate` has made it; to be asked for by their logging at all
                PartialState(cpu=True)
        begins = Begins(run_folder, dict(flat(settings)), step, recorded)
        self._hands = [_Hand(name, functools.partial(KINDS[name], begins)) for name in names]

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        until_s = time.monotonic() + self.patience_s
        for hand in self._hands:
            hand.finish(until_s)

    def row(self, row: Mapping[str, Any]) -> None:
        """A step or an evaluation: all of its columns that are numbers, under their own names."""
        if self._hands and "step" in row and "event" not in row and not (is_evaluation(row) and row["step"] == self._evaluated):
            numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name not in _LEFT_OUT}
            for hand in self._hands:
                hand.put((numbers, row["step"]))

    def go_back(self, step: int) -> None:
        """The run resumes from `step`: later ones are made again, and their rows no longer count."""
        for hand in self._hands:
            hand.put((None, step))


class _Hand:
    """The thread that hands one tracker its rows, and the rows that wait for it."""

    def __init__(self, name: str, begin: Callable[[], Tracked]) -> None:
        self._name, self._begin = name, begin
        self._rows: queue.Queue[tuple[dict[str, Any] | None, int] | None] = queue.Queue()      # None for numbers: back to that step
        self._left = threading.Event()      # it has failed, or the run has ended without it: what it may still say is not heard
        self._slow = False
        self._thread = threading.Thread(target=self._go, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, row: tuple[dict[str, Any] | None, int]) -> None:
        if self._left.is_set():
            return
        if self._rows.qsize() < _MOST or row[0] is None:
            self._rows.put(row)
        elif not self._slow:
            self._slow = True
            log.warning("tracker %s does not keep up: %s wait for it, it misses others (said once); metrics.jsonl has all",
                        self._name, plural(_MOST, "row"))

    def finish(self, until_s: float) -> None:
        """Wait for it to take what waits and to end, until the monotonic clock shows `until_s`."""
        self._rows.put(None)
        self._thread.join(max(until_s - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._left.set()
            log.warning("tracker %s is left: it does not answer, %s not handed over; metrics.jsonl has all", self._name,
                        plural(max(self._rows.qsize() - 1, 0), "row"))

    def _go(self) -> None:
        try:
            tracker = self._begin()
            while (row := self._rows.get()) is not None and not self._left.is_set():
                numbers, step = row
                if numbers is None:
                    tracker.go_back(step)
                else:
                    tracker.log(numbers, step=step)
            tracker.finish()
        except (Exception, SystemExit) as error:        # a server that does not answer must not end a run
            if not self._left.is_set():
                self._left.set()
                log.warning("tracker %s is left: %s: %s", self._name, type(error).__name__, error)


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
