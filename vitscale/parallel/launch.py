"""Start one rank per device on this machine, watch over them, and end them together.  Imports no torch."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from vitscale.errors import EXIT_DONE, EXIT_REQUEUE

log = logging.getLogger(__name__)
STORE_VARIABLE = "VITSCALE_STORE"
LIFELINE_VARIABLE = "VITSCALE_LIFELINE"     # a pipe that closes when the launcher is gone, however it ended
FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
GRACE_S = 60.0          # for the other ranks to end by themselves once one has died, before they are killed
DEAD_GRACE_S = 3.0      # the same when one was killed: the others can only wait for it in vain


def hold_lifeline() -> None:
    """Called in a rank: end this process as soon as its launcher is gone, so that a killed launcher leaves no orphans."""
    descriptor = os.environ.pop(LIFELINE_VARIABLE, None)
    if descriptor is None:
        return
    pipe = int(descriptor)

    def wait_for_the_end() -> None:
        os.read(pipe, 1)            # returns at end of file: the launcher holds the only other end and never writes
        os._exit(EXIT_REQUEUE)

    threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True).start()


def launch(command: Sequence[str], processes: int, logs: Path) -> int:
    """Run `command` as ranks 0..processes-1 on this machine; returns the exit code of the run.

    Rank 0 speaks on the console; every rank writes its own file in `logs` through the program's logging, and what other ranks
    print goes to rank-N.out.  A rank that ends badly ends the others.  TERM, USR2 and INT are passed on.
    """
    logs.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    os.set_inheritable(ours, True)
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="vitscale-") as folder:
        environment = dict(os.environ)
        environment.update({
            STORE_VARIABLE: str(Path(folder) / "store"), LIFELINE_VARIABLE: str(ours), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        })
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
        previous = {number: signal.signal(number, lambda sent, frame: _pass_on(children, sent)) for number in FORWARDED}
        try:
            for rank in range(processes):
                environment.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
                output = None if rank == 0 else open(logs / f"rank-{rank}.out", "ab")  # noqa: SIM115  (Popen keeps its own copy)
                # a session of its own keeps a terminal's Ctrl-C from reaching ranks twice
                children.append(subprocess.Popen(command, env=dict(environment), pass_fds=(ours,), stdout=output, stderr=output,
                                                 start_new_session=True))
                if output is not None:
                    output.close()
            return _watch(children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(ours)
            os.close(theirs)


def _pass_on(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended, or end them once one has ended badly.  The first bad end decides the code."""
    deadline, verdict = None, EXIT_DONE
    while True:
        codes = [child.poll() for child in children]
        if deadline is None:
            # a killed rank is the cause of what the others then report, though they may be found in the same moment
            bad = min(((code, rank) for rank, code in enumerate(codes) if code), default=None)
            if bad is not None:
                code, rank = bad
                if code < 0:
                    log.error("rank %d was ended by %s; ending the others", rank, signal.Signals(-code).name)
                    verdict, deadline = EXIT_REQUEUE, time.monotonic() + DEAD_GRACE_S
                else:
                    verdict, deadline = code, time.monotonic() + (GRACE_S if code == EXIT_REQUEUE else DEAD_GRACE_S)
        if all(code is not None for code in codes):
            return verdict
        if deadline is not None and time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(0.05)


def rank_command(arguments: Sequence[str]) -> list[str]:
    """The command line of one rank: this interpreter, this program, these arguments."""
    return [sys.executable, "-m", "vitscale", *arguments]
