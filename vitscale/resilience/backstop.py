"""The end of a process in which no Python can run any more: a call holds Python's lock, or the watchdog itself waits for a dead disk."""

import ctypes
import faulthandler
import sys
from typing import TextIO

from vitscale.errors import EXIT_REQUEUE

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD = 2


class _Event(ctypes.Structure):
    """struct sigevent of Linux (sigevent(7)): call `function` with `value` in a thread of the C library."""

    _fields_ = (("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int), ("function", ctypes.c_void_p),
                ("attributes", ctypes.c_void_p), ("rest", ctypes.c_char * 40))


class _Until(ctypes.Structure):
    """struct itimerspec: no interval, so once."""

    _fields_ = (("interval_s", ctypes.c_long), ("interval_ns", ctypes.c_long), ("value_s", ctypes.c_long), ("value_ns", ctypes.c_long))


class Backstop:
    """Unless set again in time, writes all stacks to `stacks`, and later ends the process with EXIT_REQUEUE.

    Both are done by C code alone: faulthandler's thread, and a timer of the kernel that calls _exit.  Where the C library has no such
    timer (macOS) only the stacks are written.
    """

    def __init__(self, stacks: TextIO) -> None:
        self._stacks = stacks
        self._timer: ctypes.c_void_p | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = ctypes.c_void_p()
            event = _Event(EXIT_REQUEUE, 0, _SIGEV_THREAD, ctypes.cast(self._libc._exit, ctypes.c_void_p), None, b"")
            if self._libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
                self._timer = None

    def set(self, stacks_after_s: float, end_after_s: float) -> None:
        """From now on; replaces what was set before."""
        faulthandler.dump_traceback_later(stacks_after_s, file=self._stacks)
        self._arm(end_after_s)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._arm(0.0)          # disarms it
        if self._timer is not None:
            self._libc.timer_delete(self._timer)
            self._timer = None

    def _arm(self, after_s: float) -> None:
        if self._timer is not None:
            seconds = int(after_s)
            until = _Until(0, 0, seconds, int((after_s - seconds) * 1e9))
            self._libc.timer_settime(self._timer, 0, ctypes.byref(until), None)
