"""Standard output and error of a program that goes on whatever becomes of who reads them: a full disk, a dead pipe, a closed terminal."""

import contextlib
import io
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

log = logging.getLogger(__name__)
PATIENCE_S = 1.0        # for a reader that takes nothing: a pager that waits for a key, a terminal that is held with Ctrl-S
_MOST = 1 << 18         # bytes that wait for such a reader; what comes beyond them is lost


class Steady(io.TextIOBase):
    """A text stream on a descriptor that never raises for what its reader does, and never waits longer for it than PATIENCE_S.

    A thread writes, so that a reader that has stopped reading holds up that thread alone.  As long as the reader takes what comes, write()
    of a whole line and flush() return when it has been handed over, as those of a plain stream do: no line is lost at an abrupt end.
    What could not be written is dropped, and the first time that is said in the log; each later line tries anew.
    """

    def __init__(self, descriptor: int, name: str, encoding: str = "utf-8") -> None:
        self.name, self.mode, self.line_buffering = name, "w", True
        self._descriptor, self._coding = descriptor, encoding
        self._line = ""                                 # the part of a line that waits for its end
        self._waiting: deque[bytes] = deque()
        self._size = 0                                  # bytes handed to the thread and not yet written
        self._stuck = self._said = False
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def write(self, text: str) -> int:
        with self._change:
            self._line += text
        if "\n" in text or len(self._line) > 1 << 16:
            self.flush()
        return len(text)

    def flush(self) -> None:
        with self._change:
            data, self._line = self._line.encode(self._coding, "backslashreplace"), ""
        if data:
            self.put(data)

    def put(self, data: bytes) -> None:
        """Hand bytes over, and wait for them to be written as far as that is of use."""
        if sys.is_finalizing() or self._process != os.getpid() or not self._has_thread():
            self._write_at_once(data)       # the threads of a fork, and of a Python that is ending, are gone
            return
        with self._change:
            if self._size + len(data) > _MOST:
                return
            self._waiting.append(data)
            self._size += len(data)
            self._change.notify_all()
            if self._stuck or threading.current_thread() is self._thread:
                return
            self._stuck = not self._change.wait_for(lambda: not self._size, PATIENCE_S)
            if self._stuck:
                self._complain("nobody takes what it writes")

    def _has_thread(self) -> bool:
        with self._change:
            if self._thread is None:
                thread = threading.Thread(target=self._go, name=self.name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:        # the system gives no more of them
                    return False
                self._thread = thread
        return True

    def _go(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._waiting))
                data = b"".join(self._waiting)
                self._waiting.clear()
            problem = self._write_out(data)
            with self._change:
                self._size -= len(data)
                self._stuck = False
                self._change.notify_all()
            if problem is not None:
                self._complain(problem.strerror or str(problem))

    def _write_out(self, data: bytes) -> OSError | None:
        """Returns what went wrong."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view):]
            except BlockingIOError:                     # who shares the descriptor has made it so: ssh, node
                waiter = select.poll()
                waiter.register(self._descriptor, select.POLLOUT)
                waiter.poll()
            except OSError as error:
                return error
        return None

    def _write_at_once(self, data: bytes) -> None:
        """Without a thread: as much as is taken without waiting long."""
        waiter = select.poll()
        waiter.register(self._descriptor, select.POLLOUT)
        for at in range(0, len(data), select.PIPE_BUF):     # so much goes into a pipe that is ready, without waiting
            if not waiter.poll(1000 * PATIENCE_S) or self._write_out(data[at:at + select.PIPE_BUF]) is not None:
                return

    def _complain(self, why: str) -> None:
        if not self._said:
            self._said = True
            say_apart(log, "%s: %s; what it does not take is lost, and nothing waits for it; the run's own files have all of it",
                      self.name, why)

    # What else is asked of a standard stream.

    @property
    def encoding(self) -> str:                          # type: ignore[override]
        return self._coding

    @property
    def errors(self) -> str:                            # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> "_Bytes":
        return _Bytes(self)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def reconfigure(self, **_: Any) -> None:
        """Nothing about it can be changed."""

    def close(self) -> None:
        """Only handed over: others speak here too."""
        self.flush()


class _Bytes(io.RawIOBase):
    """The stream underneath, for who writes bytes."""

    def __init__(self, stream: Steady) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        self._stream.put(bytes(data))
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


class Results:
    """Standard output of a program whose purpose is what it prints there: errors are raised as ever, and the first is remembered, since
    libraries make other things of it (rich and typer an exit with code 1)."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.problem: OSError | None = None

    def write(self, text: str) -> int:
        return int(self._noting(self._stream.write, text) or 0)

    def flush(self) -> None:
        self._noting(self._stream.flush)

    def end(self) -> OSError | None:
        """Hand over what is left; what went wrong, now or before.  Then nobody prints there any more, Python at its very end neither: an
        error there would become exit code 120."""
        with contextlib.suppress(OSError, ValueError):
            self.flush()
        if self.problem is not None:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        return self.problem

    def _noting(self, act: Callable[..., Any], *values: Any) -> Any:
        try:
            return act(*values)
        except OSError as error:
            self.problem = self.problem or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say_apart(to: logging.Logger, message: str, *values: object) -> None:
    """Warn from a thread of its own: whoever finds that a handler's stream has failed may hold that handler's lock."""
    if sys.is_finalizing():
        return
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=to.warning, args=(message, *values), name="complaint", daemon=True).start()


def hold_descriptors() -> None:
    """Give the standard descriptors that are closed to /dev/null: else the next file that is opened, a checkpoint say, would become one of
    them, and be written into by whoever prints."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)        # it takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))    # noqa: SIM115


def steady(name: Literal["stdout", "stderr"]) -> None:
    """Make sys.stdout or sys.stderr a Steady one; a stream without a descriptor (a test's) stays."""
    stream = getattr(sys, name)
    if isinstance(stream, Steady):
        return
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    setattr(sys, name, Steady(descriptor, f"standard {'output' if name == 'stdout' else 'error'}", stream.encoding or "utf-8"))
