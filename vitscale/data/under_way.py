"""What threads have in hand, in memory that outlives their process; and whether a sample by itself ends the process that decodes it."""

import contextlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

OWN_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)     # of a process's own making
SLOTS = 1024            # samples at the same time; more go unwritten
_TRIAL_S = 120.0


class Slots:
    """A table in shared memory with a row for each sample under way, whose first number says that it is.  For any thread."""

    def __init__(self, memory: mmap.mmap, layout: struct.Struct) -> None:
        """memory: SLOTS rows of `layout`, all zero."""
        self.memory, self._layout, self._free = memory, layout, list(range(SLOTS))

    @contextlib.contextmanager
    def holding(self, *values: Any) -> Iterator[None]:
        try:
            slot = self._free.pop()
        except IndexError:
            yield
            return
        self._layout.pack_into(self.memory, slot * self._layout.size, 1, *values)
        try:
            yield
        finally:
            self.memory[slot * self._layout.size] = 0
            self._free.append(slot)


def left_in(memory: bytes | mmap.mmap, layout: struct.Struct) -> list[tuple[Any, ...]]:
    """The rows that a process held when it died, without the number that says so."""
    rows = [layout.unpack_from(memory, at) for at in range(0, len(memory) - layout.size + 1, layout.size)]
    return [values for busy, *values in rows if busy == 1]      # type: ignore[misc]


def kills(data: bytes, asked: dict[str, Any] | None) -> bool:
    """Whether decoding it ends a process of its own.  asked: as data/trial.py reads it."""
    command = [sys.executable, "-X", "faulthandler", "-m", "vitscale.data.trial", json.dumps(asked)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_TRIAL_S, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    except subprocess.TimeoutExpired:
        return False
    return -done.returncode in OWN_SIGNALS
