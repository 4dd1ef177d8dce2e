"""Append-only files of one JSON object per line, such as metrics.jsonl, that survive a kill in the middle of a line."""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.errors import DataError

log = logging.getLogger(__name__)
_MOST_HELD = 64 << 20       # bytes of rows that wait in memory for a disk to have room again


class JsonLines:
    """Appends rows; each is handed to the operating system at once, whole.

    A last line that a kill cut short is mended at opening: completed by its newline if it is whole, else cut off; so later rows are intact.
    JSON has no NaN and no infinity: they are written as null.

    A disk that takes no more does not end a run for the sake of its rows: they wait in memory, in order, and go with the first one that
    can be written again, or at close().  What cannot be written even then is counted in the log.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        self._file = open(path, "ab", buffering=0)      # noqa: SIM115  held open until close()
        self._held: list[bytes] = []

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row.  Values: whatever JSON has, and numbers with `item()` or `__float__` (numpy's, a torch scalar)."""
        line = json.dumps(_plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(b"".join([*self._held, line]))
        except OSError as error:
            if not self._held:
                log.error("%s: %s; its rows wait in memory", self._file.name, error.strerror or error)
            if sum(map(len, self._held)) > _MOST_HELD:
                raise
            self._held.append(line)
            return
        if self._held:
            log.info("%s: %d row(s) that waited are written", self._file.name, len(self._held))
            self._held.clear()

    def _append(self, lines: bytes) -> None:
        written = self._file.write(lines)
        if written != len(lines):                       # leave no half line for the next row to join
            self._file.truncate(self._file.seek(0, os.SEEK_END) - (written or 0))
            raise OSError(f"only {written} of {len(lines)} bytes could be written")

    def close(self) -> None:
        try:
            if self._held:
                self._append(b"".join(self._held))
        except OSError as error:
            log.error("%s: %s; %d row(s) are lost", self._file.name, error.strerror or error, len(self._held))
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole row, in the order written; nothing if the file does not exist.

    A torn last line is passed over, since a writer may be at work.  A damaged line elsewhere raises DataError with its number.
    metrics.jsonl is never cut: after a resume or a rollback the rows of the steps that are repeated follow, and of two rows of one step
    the later counts.
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
            row = _parse(line)
            if row is None:
                pending = DataError(f"{path}: line {number} is not a JSON object; the file was changed or damaged: delete that line")
            else:
                yield row


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:              # also a cut UTF-8 sequence
        return None
    return row if isinstance(row, dict) else None


def _mend(path: Path) -> None:
    try:
        file = open(path, "r+b")    # noqa: SIM115  closed by the with below
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            start = max(start - 65536, 0)
            file.seek(start)
            tail = file.read(end - start)
        tail = tail[tail.rfind(b"\n") + 1:]
        if not tail:
            return
        if _parse(tail) is None:
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
