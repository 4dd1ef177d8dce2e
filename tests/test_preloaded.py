"""A start from the preloaded server makes the same process as a plain one: what it sees of itself, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import preloaded
import pytest

PLAIN = preloaded.Popen.__base__
LOOK = r'''
import json, os, resource, signal, sys, threading
read = lambda name: os.fsdecode(open("/proc/self/" + name, "rb").read().rstrip(b"\0")).split("\0")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
json.dump({
    "parent": os.getppid(), "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()], "folder": os.getcwd(),
    "environment": dict(os.environ), "shown": [read("cmdline"), sorted(read("environ"))], "name": open("/proc/self/comm").read(),
    "arguments": [sys.argv, sys.orig_argv, sys.executable], "path": sys.path, "flags": str(sys.flags),
    "threads": len(os.listdir("/proc/self/task")),
    "open": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name) and int(name) != 8),
    "status": {name: status[name] for name in ("Umask", "SigBlk", "SigIgn", "SigCgt", "Uid", "Cpus_allowed", "NoNewPrivs")},
    "limits": [resource.getrlimit(number) for number in range(16)], "nice": os.nice(0), "main": threading.main_thread().name,
    "handlers": [str(signal.getsignal(number)).split(" at ")[0] for number in sorted(signal.valid_signals())],
    "streams": [[stream.fileno(), stream.isatty(), stream.encoding, stream.errors, stream.line_buffering]
                for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "vitscale": "vitscale" in sys.modules, "said": sys.stdin.read(),
}, open("look.json", "w"))
os.write(1, b"out")
os.write(2, b"err")
'''


def look(popen: Callable[..., Any], folder: Path, then: str, **how: Any) -> tuple[dict[str, Any], Any, int]:
    """Starts the program with a sitecustomize that writes down what it sees, and does something `then`; what it saw, printed, its end."""
    (folder / "sitecustomize.py").write_text(LOOK + then)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MORE": "\xe9\udce9 x=y"}
    process = popen([sys.executable, "-m", "vitscale", "train", "--help", "\xe9"], cwd=folder, env=environment, stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    (folder / "look.json").unlink(missing_ok=True)
    printed = process.communicate(b"hello", timeout=120)
    assert (folder / "look.json").exists(), printed
    return json.loads((folder / "look.json").read_text()), printed, process.returncode


@pytest.fixture
def odd() -> Iterator[None]:
    """Of what is inherited, something unusual."""
    mask, handler = os.umask(0o027), signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGWINCH])
    signal.signal(signal.SIGUSR2, handler)
    os.umask(mask)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: elsewhere every start is plain")
@pytest.mark.parametrize(("then", "code"), [
    ("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
    ("os.kill(os.getpid(), signal.SIGTERM)", -15)])
def test_it_sees_and_ends_as_a_plain_one(tmp_path: Path, odd: None, then: str, code: int) -> None:
    read, write = os.pipe()
    try:
        for how in ({}, {"start_new_session": True, "pass_fds": (write,)}):
            plain, ours = (look(popen, tmp_path, then, **how) for popen in (PLAIN, preloaded.Popen))
            assert {key: (plain[0][key], seen) for key, seen in ours[0].items() if seen != plain[0][key]} == {}
            assert plain[1] == ours[1] == (b"out", b"err")
            assert plain[2] == ours[2] == code
            assert ours[0]["parent"] == os.getpid()
    finally:
        os.close(read)
        os.close(write)
