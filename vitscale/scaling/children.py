"""The runs of a sweep as processes of this machine: forks of one that has imported torch (train/fork_server.py)."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitscale.errors import EXIT_REQUEUE, ClusterError


class Child:
    """One run.  `code` is None while it runs; a negative one is the signal that ended it."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.code: int | None = None


class ForkServer:
    """Starts runs, and knows how they ended.  If it dies itself, its runs count as stopped, and the next start makes a new one."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[str, Child] = {}
        self._buffer = b""

    def start(self, recipe: Path, log: Path, environment: Mapping[str, str]) -> Child:
        """Raises ClusterError when no process can be started."""
        if self._process is None or self._process.poll() is not None:
            self._open()
        assert self._process is not None
        assert self._process.stdin is not None
        child, name = Child(), str(len(self._children))
        self._children[name] = child
        asked = {"id": name, "recipe": str(recipe), "log": str(log), "environment": dict(environment)}
        try:
            self._process.stdin.write((json.dumps(asked) + "\n").encode())
            self._process.stdin.flush()
        except OSError:
            child.code = EXIT_REQUEUE
        return child

    def look(self) -> None:
        """Take note of what has ended since the last look."""
        if self._process is None or self._process.stdout is None:
            return
        died = self._process.poll() is not None
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._process.stdout.fileno(), 1 << 16):
                self._buffer += part
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            told: dict[str, Any] = json.loads(line)
            if "id" in told:
                child = self._children[told["id"]]
                child.pid, child.code = told.get("pid", child.pid), told.get("code", child.code)
        if died:
            for child in self._children.values():
                child.code = EXIT_REQUEUE if child.code is None else child.code

    def close(self) -> None:
        """Runs that still go on save and stop; returns when they have."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process = None

    def _open(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self._log, "ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vitscale", "job", "fork-server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                    start_new_session=True, preexec_fn=_end_with_parent if sys.platform == "linux" else None)
        except OSError as error:
            raise ClusterError(f"no process can be started ({error.strerror})") from None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._buffer = b""


def _end_with_parent() -> None:
    """TERM when the sweep is gone, also if it was killed; the runs hear of it in turn."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
