"""What the rows of a run add up to, over all its attempts, without reading them all again at each start: logs/totals.json remembers."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from vitscale.files import write_atomically
from vitscale.metrics import is_evaluation
from vitscale.metrics.metric import EVALUATED
from vitscale.metrics.system import EVALUATION_LOSS
from vitscale.observe.jsonl import parse_row, rows_from
from vitscale.runfolder import cut_by

log = logging.getLogger(__name__)
FILE = "logs/totals.json"
METRICS, QUARANTINE = "metrics.jsonl", "quarantine.jsonl"
_EVERY = 256            # rows between two writings: so many are read again by the next attempt at most
_EVALUATIONS = 64       # that are remembered, for rollbacks to go back over
_SEAL = 256             # bytes before a mark by which a file is known again


class Totals:
    """Sums over metrics.jsonl and quarantine.jsonl; only for the holder of the run folder.

    Beside them lies up to which byte of each file they hold: rows from there on are read when this is made, and no others.  A file that
    was changed before its mark, or that has none (of an older version), is read once as a whole, row by row.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder
        self.images = self.steps = 0                # as far as any attempt came
        self.nonfinite = 0                          # steps whose update was left out
        self._evaluations: list[dict[str, Any]] = []    # the last ones that stand: step and eval_...
        self.skipped: Counter[str] = Counter()      # samples that could not be used, by reason
        self._since = 0
        known = _read(run_folder / FILE)
        start = _start(run_folder / METRICS, known)
        if start:
            self.images, self.steps, self.nonfinite = known["images"], known["steps"], known["nonfinite"]
            self._evaluations = known["evaluations"]
        for row in _rows(run_folder / METRICS, start, _slim):
            self.metric(row)
        start = _start(run_folder / QUARANTINE, known)
        if start:
            self.skipped = Counter(known["skipped"])
        for row in _rows(run_folder / QUARANTINE, start):
            self.skip(row)

    def metric(self, row: Mapping[str, Any]) -> None:
        """Take in a row of metrics.jsonl."""
        self._since += 1
        images, step, stands = row.get("images"), row.get("step"), cut_by(row)
        if isinstance(images, int):
            self.images = max(self.images, images)
        if isinstance(images, int) and isinstance(step, int):
            self.steps = max(self.steps, step)
        self.nonfinite += row.get("applied") is False
        while self._evaluations and self._evaluations[-1].get("step", 0) > stands:
            self._evaluations.pop()
        if is_evaluation(row):
            self._evaluations = [*self._evaluations[1 - _EVALUATIONS:],
                                 {key: value for key, value in row.items() if key.startswith(EVALUATED) or key == "step"}]

    @property
    def evaluation(self) -> dict[str, Any]:
        """eval_... of the last one that no later row has undone."""
        return {key: value for key, value in self._evaluations[-1].items() if key != "step"} if self._evaluations else {}

    def skip(self, row: Mapping[str, Any], times: int = 1) -> None:
        """Take in a row of quarantine.jsonl; `times` -1: take one out that is cut off."""
        self._since += 1
        reason = str(row.get("reason", "?"))
        self.skipped[reason] += times
        if self.skipped[reason] <= 0:
            del self.skipped[reason]

    @property
    def is_due(self) -> bool:
        """Whether so many rows have come that they should be written down."""
        return self._since >= _EVERY

    def write(self, metrics_end: int | None, quarantine_end: int | None) -> None:
        """Write them down, as of files of so many bytes; None: not all rows are in it.  Nothing is lost where that cannot be done."""
        self._since = 0
        if metrics_end is None or quarantine_end is None:
            return
        try:
            marks = {name: [end, _seal(self._folder / name, end)] for name, end in ((METRICS, metrics_end), (QUARANTINE, quarantine_end))}
            write_atomically(self._folder / FILE, json.dumps({
                "images": self.images, "steps": self.steps, "nonfinite": self.nonfinite, "evaluations": self._evaluations,
                "skipped": self.skipped, "marks": marks}), durable="no")
        except (OSError, ValueError, TypeError) as error:
            log.debug("%s: %s", self._folder / FILE, error)


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
        sound = (all(isinstance(known[name], int) for name in ("images", "steps", "nonfinite"))
                 and isinstance(known["evaluations"], list) and all(isinstance(one, dict) for one in known["evaluations"])
                 and all(isinstance(count, int) for count in known["skipped"].values()) and isinstance(known["marks"], dict))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return known if sound else {}


def _start(path: Path, known: dict[str, Any]) -> int:
    """Up to which byte of a file its sums hold; 0: they do not."""
    try:
        end, seal = known["marks"][path.name]
        return int(end) if end > 0 and _seal(path, end) == seal else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def _seal(path: Path, end: int) -> str:
    """By which a file is known to be the same up to `end`, without reading it: a hash of the bytes right before.  "" for one that is
    shorter, or not there."""
    try:
        with open(path, "rb") as file:
            file.seek(max(end - _SEAL, 0))
            data = file.read(min(end, _SEAL))
    except FileNotFoundError:
        return ""
    return hashlib.sha256(data).hexdigest()[:32] if len(data) == min(end, _SEAL) else ""


def _rows(path: Path, start: int, parse: Callable[[bytes], dict[str, Any] | None] | None = None) -> Iterator[dict[str, Any]]:
    try:
        yield from rows_from(path, start, parse)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s: %s; sums over the whole run may be short", path, error.strerror or error)


# What is counted of a row of a step, and by what one of an evaluation is known: a million rows in a second.
_Counted = msgspec.defstruct("_Counted", [*((name, Any, None) for name in ("images", "step", "to_step", "event", "applied")),
                                          (EVALUATION_LOSS.column, Any, msgspec.UNSET)])
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Counted)


def _slim(line: bytes) -> dict[str, Any] | None:
    """A row of metrics.jsonl, that of a step without what is not counted."""
    try:
        row = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):      # it is stricter than what rows were ever read with
        return parse_row(line)
    if getattr(row, EVALUATION_LOSS.column) is not msgspec.UNSET:
        return parse_row(line)
    slim = {"images": row.images, "step": row.step, "to_step": row.to_step, "applied": row.applied}
    return slim if row.event is None else slim | {"event": row.event}
