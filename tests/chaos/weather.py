"""Disturbances that a test turns on and off in the processes of a run while they work: a file system that fails, a clock that is wrong.

    environment = install_in(place, run_folder)       # every Python process that is started with it is under this weather
    with failing(place): ...                          # reads, writes and listings below the run folder raise EIO
    set_clock(place, -3600)                           # time.time() is an hour behind

Like tests/faults.py, whose file of the same kind this adds to.  Imports nothing heavy.
"""

import builtins
import contextlib
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FAILING, CLOCK = "files-fail", "clock-is-off-by"
_TOUCHING = ("open", "listdir", "scandir", "utime", "replace", "link", "mkdir", "stat")       # of the module os


def install_in(place: Path, run_folder: Path) -> None:
    """After `faults(place, ...)`: its processes also come under the weather of `place`, the files below `run_folder` at least."""
    path = place / "faults" / "sitecustomize.py"
    path.write_text(f"{path.read_text()}sys.path.append({str(Path(__file__).parent)!r})\nimport weather\n"
                    f"weather.install({str(place)!r}, {str(run_folder)!r})\n")


@contextlib.contextmanager
def failing(place: Path) -> Iterator[None]:
    """Files below the run folder cannot be touched for the length of a `with` block."""
    (place / FAILING).touch()
    try:
        yield
    finally:
        (place / FAILING).unlink()


def set_clock(place: Path, off_by_s: float) -> None:
    """Processes under the weather of `place` tell a time of day that is so many seconds ahead (or, negative, behind)."""
    beside = place / f".{CLOCK}"
    beside.write_text(str(off_by_s))
    beside.replace(place / CLOCK)


# From here on: inside the program's processes.


def install(place: str, run_folder: str) -> None:
    """Called by sitecustomize."""
    exists, true_time = os.stat, time.time
    trouble, clock = os.path.join(place, FAILING), os.path.join(place, CLOCK)
    known = {"at": -1.0, "off_by": 0.0}
    read = builtins.open

    def told_time() -> float:
        now = time.monotonic()
        if now - known["at"] > 0.2:
            known["at"] = now
            with contextlib.suppress(OSError, ValueError), read(clock) as file:
                known["off_by"] = float(file.read())
        return true_time() + known["off_by"]

    def failing_now(path: Any) -> bool:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(run_folder):      # type: ignore[arg-type]
            return False
        try:
            exists(trouble)
        except OSError:
            return False
        return True

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def touching(path: Any = ".", *arguments: Any, **named: Any) -> Any:
            if failing_now(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path))
            return function(path, *arguments, **named)

        return touching

    time.time = told_time
    for name in _TOUCHING:
        setattr(os, name, wrapped(getattr(os, name)))
    builtins.open = io.open = wrapped(read)
