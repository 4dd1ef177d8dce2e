"""The end of a process in which no Python can run any more: a call holds Python's lock, or the watchdog itself waits for a dead disk."""

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import vitscale
from vitscale.errors import EXIT_REQUEUE
from vitscale.resilience.watcher import STACKS_SIGNAL

log = logging.getLogger(__name__)
_SIGEV_THREAD = 2
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from vitscale.resilience.watcher import main; main(sys.argv[2:])"


class _Event(ctypes.Structure):
    """struct sigevent of Linux (sigevent(7)): call `function` with `value` in a thread of the C library."""

    _fields_ = (("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int), ("function", ctypes.c_void_p),
                ("attributes", ctypes.c_void_p), ("rest", ctypes.c_char * 32))


class _Read(ctypes.Structure):
    """struct aiocb of the GNU C library (aio(7)): read `size` bytes of `descriptor` into `buffer`, then `event`."""

    _fields_ = (("descriptor", ctypes.c_int), ("operation", ctypes.c_int), ("priority", ctypes.c_int), ("buffer", ctypes.c_void_p),
                ("size", ctypes.c_size_t), ("event", _Event), ("rest", ctypes.c_char * 128))


@dataclass(frozen=True)
class Of:
    """Whose backstop it is: what the outcome says."""

    run_folder: str
    rank: int
    node: str
    attempt: int


class Backstop:
    """Unless set again in time, has all stacks written to `stacks`, and later ends the process with EXIT_REQUEUE.

    Time counts in which the process could run.  No timer of the kernel tells that, so a small process of its own (watcher.py) counts.
    It has the stacks written by a signal that faulthandler answers in C, writes outcome.json (cause "hang", with the attempt), unless
    other ranks have, and then lets this process end itself: by a byte in a pipe, which the C library reads and calls _exit(75).  Where
    that cannot be done (another C library, macOS) the process is killed; outcome.json says the same.
    """

    def __init__(self, stacks: TextIO, of: Of) -> None:
        self._stacks, self._of = stacks, of
        faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True)
        # the signal goes to a thread that does nothing else: in another it would interrupt the very call that hangs
        self._closed = threading.Event()
        self._answering = threading.Thread(target=self._closed.wait, name="stacks", daemon=True)
        self._answering.start()
        self._end_is_read, self._end = os.pipe()        # both held open: it must never come to its end by itself
        self._request = _end_at_a_byte(self._end_is_read)       # the C library writes into it: it must live as long as this
        self._watcher: subprocess.Popen[bytes] | None = None
        self._orders = -1

    def set(self, stacks_after_s: float, end_after_s: float, place: str = "", step: int = 0) -> None:
        """From now on; replaces what was set before.  `place`: where the process now is, in words, after so many whole steps."""
        order = json.dumps({"stacks_s": stacks_after_s, "end_s": end_after_s, "place": place, "step": step}).encode() + b"\n"
        for _ in range(2):
            if self._watcher is None:
                self._begin()
            try:
                os.write(self._orders, order)
            except BlockingIOError:     # somebody has stopped the watcher: what it has not read yet says the same
                pass
            except OSError:             # it was killed
                self._drop()
                continue
            return

    def close(self) -> None:
        self._drop()
        self._closed.set()
        faulthandler.unregister(STACKS_SIGNAL)      # the pipe stays: the C library reads it

    def _begin(self) -> None:
        orders, self._orders = os.pipe()
        os.set_blocking(self._orders, False)
        try:
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(vitscale.__file__).parents[1]), str(os.getpid()),
                 str(self._answering.native_id), str(orders), str(self._end), json.dumps(asdict(self._of)), self._stacks.name],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(orders, self._end))
        except OSError as error:
            log.warning("nothing would end this process if it came to hang in C code: its watcher cannot be started (%s)", error)
        finally:
            os.close(orders)

    def _drop(self) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
            self._watcher = None
        with contextlib.suppress(OSError):
            os.close(self._orders)
        self._orders = -1


def _end_at_a_byte(pipe: int) -> tuple[object, ...]:
    """Have the C library read `pipe` in a thread of its own, and end the process with EXIT_REQUEUE when a byte comes."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.gnu_get_libc_version       # noqa: B018  the layout is that of this one
        buffer = ctypes.create_string_buffer(1)
        event = _Event(EXIT_REQUEUE, 0, _SIGEV_THREAD, ctypes.cast(libc._exit, ctypes.c_void_p), None, b"")
        request = _Read(pipe, 0, 0, ctypes.addressof(buffer), 1, event, b"")
        libc.aio_read(ctypes.byref(request))
    except AttributeError:
        return ()
    return buffer, request
