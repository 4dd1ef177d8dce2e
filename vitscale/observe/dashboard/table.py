"""The rows of a metrics.jsonl as columns, read while the file grows: every byte once, and no longer at a time than one cares to wait."""

import json
import os
import stat
import time
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitscale.metrics import OF_STEPS, is_evaluation
from vitscale.runfolder import cut_by, number

COLUMNS = (*(metric.column for metric in OF_STEPS), "attempt", "applied")
_CHUNK = 4 << 20
_LONGEST_LINE = 64 << 20        # a longer one is no row
_MOST_APART = 20_000            # evaluations, checkpoints and such that are kept
_Row = msgspec.defstruct("_Row", [("event", Any, None), ("loss", Any, msgspec.UNSET),
                                  *((name, Any, None) for name in COLUMNS if name != "loss")], gc=False)


class Table:
    """What a run has recorded.  `refresh` before you look; a file that was replaced or cut is read anew.

    `columns[name]` (N,) float64 of the training rows, NaN where a row has no number; `where` (N,) is each row's place in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoder = msgspec.json.Decoder(_Row)
        self._forget()

    def _forget(self) -> None:
        self._numbers = np.empty((len(COLUMNS) + 1, 1024))      # the last line holds the places; a float64 is exact for them
        self._inode = self._read = 0
        self.size = self.rows = self.broken = 0
        self.trouble = ""           # why the file cannot be read at all
        self.apart: list[dict[str, Any]] = []       # rows of evaluations and events
        self._before: list[int] = []                # of each: how many training rows came before it,
        self._cuts: list[float] = []                # and after which step those do not stand

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        return {name: self._numbers[at, : self.rows] for at, name in enumerate(COLUMNS)}

    @property
    def where(self) -> NDArray[np.float64]:
        return self._numbers[-1, : self.rows]

    @property
    def read_ratio(self) -> float:
        """How much of the file has been read, 0..1; a torn last line counts as read."""
        return self._read / self.size if self.size else 1.0

    def refresh(self, budget_s: float = float("inf")) -> bool:
        """Read on for at most about `budget_s`, at least one piece; returns whether all that is there has been read."""
        until = time.perf_counter() + budget_s
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                if not stat.S_ISREG(now.st_mode):
                    self.trouble = "is no regular file"     # a device may give bytes for ever
                    return True
                if now.st_ino != self._inode or now.st_size < self._read:
                    self._forget()
                    self._inode = now.st_ino
                self.size, size = now.st_size, _CHUNK
                file.seek(self._read)
                while chunk := file.read(size):
                    whole = chunk[: chunk.rfind(b"\n") + 1]
                    if not whole and len(chunk) == size and size < _LONGEST_LINE:
                        size *= 2               # a line longer than what was read
                        file.seek(self._read)
                        continue
                    if not whole and len(chunk) < size:
                        break                   # the torn last line: it may become whole
                    self._take(whole or chunk)
                    self._read, size = self._read + len(whole or chunk), _CHUNK
                    file.seek(self._read)
                    if time.perf_counter() > until and self._read < self.size:
                        return False
                self.size = max(self._read, 1)
            self.trouble = ""
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            self.trouble = error.strerror or str(error)
        return True

    def _take(self, text: bytes) -> None:
        lines = text.split(b"\n")
        if not lines[-1]:
            lines.pop()
        places = self._read + np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
        try:
            rows: list[Any] = self._decoder.decode_lines(text)
        except (msgspec.MsgspecError, UnicodeError):
            rows = []
        if len(rows) != len(lines):
            rows = [self._one(line) for line in lines]
        training = [at for at, row in enumerate(rows) if row is not None and row.loss is not msgspec.UNSET and row.event is None]
        so_far = self.rows
        self._append([rows[at] for at in training], places[training], text)
        if len(training) < len(rows):
            counted = np.isin(np.arange(len(rows)), training)
            before = so_far + np.cumsum(counted)
            self._keep_apart((lines[at], int(before[at])) for at, row in enumerate(rows) if row is not None and not counted[at])

    def _one(self, line: bytes) -> Any:
        """One row, None if it is none; takes NaN and Infinity, which are no JSON but which others write."""
        if not line.strip():
            return None
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError):
            pass
        try:
            row = json.loads(line)
            if isinstance(row, dict):
                return _Row(**{key: value for key, value in row.items() if key in _Row.__struct_fields__})
        except (ValueError, RecursionError):
            pass
        self.broken += 1
        return None

    def _append(self, rows: list[Any], places: NDArray[np.int64], text: bytes) -> None:
        end = self.rows + len(rows)
        if end > self._numbers.shape[1]:
            larger = np.empty((len(COLUMNS) + 1, max(2 * self._numbers.shape[1], end)))
            larger[:, : self.rows] = self._numbers[:, : self.rows]
            self._numbers = larger
        for at, name in enumerate(COLUMNS):
            present = name.encode() in text         # most rows lack some column, and looking is cheaper than converting
            self._numbers[at, self.rows:end] = numbers(list(map(attrgetter(name), rows))) if present else np.nan
        self._numbers[-1, self.rows:end] = places
        self.rows = end

    def _keep_apart(self, lines: Iterable[tuple[bytes, int]]) -> None:
        for line, before in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and ("event" in row or is_evaluation(row)) and len(self.apart) < _MOST_APART:
                self.apart.append(row)
                self._before.append(before)
                self._cuts.append(cut_by(row))

    def standing(self) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
        """Which training rows (N,) count, and the evaluations that do: those of steps that no later row makes again (cut_by)."""
        step, before = self.columns["step"], np.array(self._before, dtype=np.int64)
        by_rows, by_apart = (np.append(np.fmin.accumulate(cuts[::-1])[::-1], np.inf) for cuts in (step - 1, np.array(self._cuts)))
        after = np.searchsorted(before, np.arange(1, self.rows + 1))        # the first row apart that comes after each training row
        rows = step <= np.fmin(by_rows[1:], by_apart[after])
        until = np.fmin(by_rows[before], by_apart[1:])
        return rows, [row for row, last in zip(self.apart, until.tolist(), strict=True)
                      if is_evaluation(row) and not number(row.get("step")) > last]

    def row_at(self, place: float) -> dict[str, Any]:
        """The whole row that begins at `place` of the file; {} if it is no longer there."""
        try:
            with open(self.path, "rb") as file:
                file.seek(int(place))
                row = json.loads(file.readline(_LONGEST_LINE))
        except (OSError, ValueError, RecursionError):
            return {}
        return row if isinstance(row, dict) else {}


def numbers(values: list[Any]) -> NDArray[np.float64]:
    """Of what a file says; what is no finite number becomes NaN."""
    try:
        found = np.array(values, dtype=np.float64)
        if found.ndim == 1 and len(found) == len(values) and not any(isinstance(value, str) for value in values[:1]):
            found[~np.isfinite(found)] = np.nan
            return found
    except (ValueError, TypeError, OverflowError):
        pass
    return np.array([number(value) for value in values], dtype=np.float64)


def sampled(path: Path, count: int, start: int = 0) -> list[dict[str, Any]]:
    """About `count` training rows, evenly spread over the file from byte `start` on, in order, the last one among them.  Reads little."""
    rows: list[dict[str, Any]] = []
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            at = start
            for goal in np.linspace(start, max(size - 1, start), count + 1)[:-1].tolist():
                if goal < at:
                    continue
                file.seek(int(goal))
                if goal > start:
                    file.readline(_CHUNK)       # the rest of a line
                for _ in range(3):              # an evaluation or an event may stand there
                    line = file.readline(_CHUNK)
                    row = _parsed(line)
                    if row is not None and "loss" in row and "event" not in row:
                        rows.append(row)
                        break
                at = file.tell()
    except OSError:
        pass
    return rows


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
