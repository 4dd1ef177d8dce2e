"""What a rank of a run has said: the ends of its files, and what is added to them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from vitscale.errors import ClusterError
from vitscale.runfolder import printable

POLL_S = 0.5
CHUNK_BYTES = 1 << 16


def logs_of(folder: Path, rank: int) -> list[Path]:
    """The rank's log and, of ranks other than 0, what it printed besides (a traceback, a library's words).  Raises ClusterError."""
    found = [path for path in (folder / "logs" / f"rank-{rank}.log", folder / "logs" / f"rank-{rank}.out") if path.is_file()]
    if not found:
        ranks = sorted(int(path.stem[5:]) for path in (folder / "logs").glob("rank-*.log") if path.stem[5:].isdecimal())
        there = f"ranks {ranks[0]} to {ranks[-1]} have some" if ranks else "no rank has begun"
        raise ClusterError(f"{folder}: no log of rank {rank}; {there}")
    return found


def show(paths: list[Path], lines: int, follow: bool, write: Callable[[str], None]) -> None:
    """The last `lines` lines of each file that holds any; then, to `follow`, whatever is added, until interrupted."""
    ends = {}
    for path in paths:
        text, ends[path] = _tail(path, lines)
        if text and len(paths) > 1:
            write(f"== {path.name}")
        for line in text:
            write(line)
    while follow:
        time.sleep(POLL_S)
        for path in paths:
            for line in _added(path, ends):
                write(line)


def _tail(path: Path, lines: int) -> tuple[list[str], int]:
    """The last lines, and the position up to which the file has been read.  Reads backwards, no more than it must."""
    with open(path, "rb") as file:
        end = start = file.seek(0, os.SEEK_END)
        data = b""
        while start > 0 and data.count(b"\n") <= lines:
            size = min(CHUNK_BYTES, start)
            start -= size
            file.seek(start)
            data = file.read(size) + data
    return _lines(data)[-lines:] if lines else [], end


def _added(path: Path, ends: dict[Path, int]) -> list[str]:
    try:
        if path.stat().st_size < ends[path]:
            ends[path] = 0          # begun anew
        with open(path, "rb") as file:
            file.seek(ends[path])
            data = file.read()
    except OSError:
        return []
    whole = data.rfind(b"\n") + 1   # the rest of a line comes with the next look
    ends[path] += whole
    return _lines(data[:whole])


def _lines(data: bytes) -> list[str]:
    return [printable(line.replace("\t", "    ")) for line in data.decode("utf-8", "replace").splitlines()]
