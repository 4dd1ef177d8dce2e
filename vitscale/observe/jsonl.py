"""Append-only files of one JSON object per line, such as metrics.jsonl, that survive a kill in the middle of a line."""

import io
import json
import logging
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from vitscale.counts import plural
from vitscale.errors import DataError

log = logging.getLogger(__name__)
_MOST_HELD = 16 << 20       # bytes of rows that wait in memory for a disk to have room again
_BLOCK = 1 << 16            # bytes that are read at once from the end of a file


class JsonLines:
    """Appends rows; each is handed to the operating system at once, whole.

    A last line that a kill cut short is mended at opening: completed by its newline if it is whole, else cut off; so later rows are intact.
    JSON has no NaN and no infinity: they are written as null.

    A file that takes no more (a full disk, no permission, whatever it is) does not end a run for the sake of its rows: they wait in
    memory, in order, and go with the first one that can be written again, or at close().  What waits beyond 16 MiB is lost, the oldest
    first, and what cannot be written even at the end is counted in the log.  No method raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._held: deque[bytes] = deque()
        self._held_bytes, self._lost, self._complained = 0, 0, False
        self._end = 0               # bytes of the file, all of them whole rows
        try:
            self._open()
        except OSError as error:
            self._complain(error)

    def _open(self) -> io.FileIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _mend(self._path)
            self._file = open(self._path, "ab", buffering=0)        # noqa: SIM115  held open until close()
            self._end = self._file.seek(0, os.SEEK_END)
        return self._file

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row.  Values: whatever JSON has, and numbers with `item()` or `__float__` (numpy's, a torch scalar)."""
        waited = len(self._held)
        self._hold(json.dumps(_plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n")
        try:
            self._append()
        except OSError as error:
            self._complain(error)
            return
        if waited:
            log.info("%s: %s written that had to wait", self._path, plural(waited, "row"))
        self._complained = False

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.error("%s: %s; its rows wait in memory", self._path, error.strerror or error)

    @property
    def end(self) -> int | None:
        """Bytes of the file; None while rows wait that are not in it."""
        return None if self._held or self._file is None else self._end

    def _hold(self, line: bytes) -> None:
        self._held.append(line)
        self._held_bytes += len(line)
        while self._held_bytes > _MOST_HELD and len(self._held) > 1:
            self._held_bytes -= len(self._held.popleft())
            self._lost += 1

    def _append(self) -> None:
        file, lines = self._open(), b"".join(self._held)
        try:
            written = file.write(lines) or 0
            if written < len(lines):
                raise OSError(f"only {written} of {len(lines)} bytes could be written")
        except OSError:
            try:
                file.truncate(self._end)        # leave no half line for the next row to join
            except OSError:
                self._let_go()                  # opening it anew mends it
            raise
        self._end += written
        self._held.clear()
        self._held_bytes = 0

    def close(self) -> None:
        try:
            if self._held:
                self._append()
        except OSError as error:
            log.error("%s: %s; %s lost", self._path, error.strerror or error, plural(len(self._held) + self._lost, "row"))
        self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:        # a network disk may say only now that it has not kept what was written
            log.error("%s: %s; its last rows may be lost", self._path, error.strerror or error)

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole row, in the order written; nothing if the file does not exist.

    A torn last line is passed over, since a writer may be at work.  A damaged line elsewhere raises DataError with its number.
    metrics.jsonl is never cut, it tells all that happened; cluster/runfolder.cut_by says which of its rows stand.
    """
    try:
        file = open(path, "rb")     # noqa: SIM115  closed by the with below
    except FileNotFoundError:
        return
    with file:
        pending: DataError | None = None
        for number, line in enumerate(file, 1):
            if pending:
                raise pending
            row = parse_row(line)
            if row is None:
                pending = DataError(f"{path}: line {number} is not a JSON object; the file was changed or damaged: delete that line")
            else:
                yield row


def rows_from(path: Path, start: int, parse: Callable[[bytes], dict[str, Any] | None] | None = None) -> Iterator[dict[str, Any]]:
    """Every whole row from the offset `start` on, which is a row's; damaged lines are passed over with one warning.  `parse`: what to make
    of a line, None for a damaged one.  Raises OSError."""
    parse = parse or parse_row
    damaged = 0
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return                  # a device may give bytes for ever
        file.seek(start)
        for line in file:
            row = parse(line)
            if row is not None:
                yield row
            elif line.endswith(b"\n"):
                damaged += 1
    if damaged:
        log.warning("%s: %s passed over; delete what is damaged", path, plural(damaged, "damaged line"))


def cut_after(path: Path, last: int, column: str = "step") -> list[dict[str, Any]]:
    """Cut off the rows at the end whose `column` is more than `last`; returns them, the last first.

    Reads from the end, no further than to the first row that stays; so what it costs does not grow with the file.  A torn or damaged line
    among those cut goes with them.  Raises OSError, FileNotFoundError too.
    """
    cut: list[dict[str, Any]] = []
    with open(path, "r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        for start, line in _lines_back(file, end):
            row = parse_row(line)
            if row is not None:
                if not isinstance(row.get(column), int) or row[column] <= last:
                    break
                cut.append(row)
                end = start
            elif cut or not line.endswith(b"\n"):
                end = start
        if end < size:
            file.truncate(end)
    return cut


def _lines_back(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its newline) of the lines before `end`, the last first."""
    start, tail = end, b""
    while start > 0 or tail:
        at = tail.rfind(b"\n", 0, len(tail) - 1) if tail else -1
        if at >= 0:
            yield start + at + 1, tail[at + 1:]
            tail = tail[:at + 1]
        elif start == 0:
            yield 0, tail
            return
        else:
            size = min(max(_BLOCK, len(tail)), start)       # a line of many blocks: twice as much each time
            start -= size
            file.seek(start)
            tail = file.read(size) + tail


def parse_row(line: bytes) -> dict[str, Any] | None:
    """None for what is no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):        # also a cut UTF-8 sequence
        return None
    return row if isinstance(row, dict) else None


def _mend(path: Path) -> None:
    try:
        file = open(path, "r+b")    # noqa: SIM115  closed by the with below
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        tail = next((line for _, line in _lines_back(file, end)), b"")
        if not tail or tail.endswith(b"\n"):
            return
        if parse_row(tail) is None:
            file.truncate(end - len(tail))
        else:
            file.seek(end)
            file.write(b"\n")


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return _plain(value.item() if hasattr(value, "item") else float(value))
