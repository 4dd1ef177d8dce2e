"""The backstop's small process beside a rank: it counts how long the rank could run and did not get on, and ends it.  Imports little."""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitscale.awake import Awake
from vitscale.processes import is_stopped

TICK_S = 0.5
TELL_S = 5.0            # for the outcome and the console: what hangs may be the disk, or whoever reads the console
_DYING_S = 5.0          # for the rank to end by itself, before it is killed
# answered by faulthandler in C code, whatever Python does; a real-time signal that nobody else is known to use, Ctrl-T's on macOS
STACKS_SIGNAL = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else getattr(signal, "SIGINFO")  # noqa: B009  mypy knows Linux alone
_REQUESTS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def main(arguments: Sequence[str]) -> None:
    """The process that resilience/backstop.py starts: its parent's pid, the thread there that answers STACKS_SIGNAL, two
    pipes, whose it is, the file of the stacks."""
    for name in _REQUESTS:          # SLURM and terminals send them to all processes of a step: they mean the rank
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    rank, thread, orders, end = map(int, arguments[:4])
    of, stacks = json.loads(arguments[4]), Path(arguments[5])
    watch(rank, orders, lambda: _dump(rank, thread), lambda order, idle_s: _end(rank, end, order, idle_s, of, stacks))


def watch(rank: int, orders: int, dump: Callable[[], None], end: Callable[[dict[str, Any], float], None]) -> None:
    """Until process `rank`, the parent, is gone, or `end` was called, and `dump` before, because it did not send a new order in time.

    Time counts in which both could run: the rank is asked after at each look, and that nobody looked while this process was stopped
    itself, Awake knows.
    """
    awake, unread, order, since_s, dumped = Awake(4 * TICK_S), b"", None, 0.0, False
    while os.getppid() == rank:
        ready, _, _ = select.select([orders], [], [], TICK_S)
        before_s, now_s = awake.seconds, awake.look()
        if ready:
            text = os.read(orders, 1 << 16)
            if not text:
                return
            *lines, unread = (unread + text).split(b"\n")
            if lines:
                order, since_s, dumped = json.loads(lines[-1]), now_s, False
        if order is None:
            continue
        if is_stopped(rank):
            since_s += now_s - before_s
        idle_s = now_s - since_s
        if not dumped and idle_s >= order["stacks_s"]:
            dumped = True
            dump()
        if idle_s >= order["end_s"]:
            end(order, idle_s)
            return


def _dump(rank: int, thread: int) -> None:
    """Have the rank write its stacks, by this thread of it."""
    try:
        ctypes.CDLL(None).tgkill(rank, thread, STACKS_SIGNAL)
    except AttributeError:          # macOS
        os.kill(rank, STACKS_SIGNAL)


def _end(rank: int, pipe: int, order: dict[str, Any], idle_s: float, of: dict[str, Any], stacks: Path) -> None:
    teller = threading.Thread(target=_tell, args=(order, idle_s, of, stacks), daemon=True)
    teller.start()
    teller.join(TELL_S)
    if os.getppid() != rank:
        return
    os.write(pipe, b"x")
    until_s = time.monotonic() + _DYING_S
    while os.getppid() == rank and time.monotonic() < until_s:
        time.sleep(0.05)
    if os.getppid() == rank:
        os.kill(rank, signal.SIGKILL)


def _tell(order: dict[str, Any], idle_s: float, of: dict[str, Any], stacks: Path) -> None:
    """Who ends this rank, in outcome.json, the file of the stacks and on the rank's console, unless a watchdog has said it already."""
    from vitscale.checkpoint.lease import Lease, LeaseLost
    from vitscale.errors import EXIT_REQUEUE
    from vitscale.resilience.hang import blocked
    from vitscale.resilience.outcome import read_outcome, write_outcome

    reason, folder, attempt = blocked(of["rank"], of["node"], idle_s, order["place"]), Path(of["run_folder"]), of["attempt"]
    with contextlib.suppress(OSError), open(stacks, "a") as file:
        file.write(f"rank {of['rank']}, attempt {attempt}, {time.strftime('%F %T')}: {reason}\n")
    told = read_outcome(folder)
    if told.get("cause") == "hang" and told.get("attempt") == attempt:
        return
    with contextlib.suppress(OSError, LeaseLost):
        Lease(folder / "lease", attempt).check()
        write_outcome(folder, EXIT_REQUEUE, reason, cause="hang", attempt=attempt, step=order["step"],
                      stuck=[{"rank": of["rank"], "node": of["node"]}])
    print(f"{reason}\nthe stacks of all threads are in {stacks}", file=sys.stderr, flush=True)
