"""Start one rank per device on this machine, watch over them, and end them together.  Imports no torch."""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from vitscale.awake import Awake
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT
from vitscale.processes import moment, usable_cores
from vitscale.stopping import heard

log = logging.getLogger(__name__)
STORE_VARIABLE = "VITSCALE_STORE"
STARTED_VARIABLE = "VITSCALE_STARTED"       # when the launcher was, as moment() says it: what its ranks' startup counts from
LIFELINE_VARIABLE = "VITSCALE_LIFELINE"     # a pipe that closes when the launcher is gone, however it ended
GRACE_S = 60.0          # for the other ranks to end by themselves once one has died, before they are killed
DEAD_GRACE_S = 3.0      # the same when one was killed: the others can only wait for it in vain


def hold_lifeline() -> None:
    """Called in a rank: end this process as soon as its launcher is gone, so that a killed launcher leaves no orphans."""
    descriptor = os.environ.pop(LIFELINE_VARIABLE, None)
    if descriptor is None:
        return
    pipe = int(descriptor)
    with contextlib.suppress(OSError, AttributeError):      # should it be killed while Ctrl-Z has stopped both
        ctypes.CDLL(None).prctl(1, signal.SIGCONT)          # PR_SET_PDEATHSIG

    def wait_for_the_end() -> None:
        os.read(pipe, 1)            # returns at end of file: the launcher holds the only other end and never writes
        os._exit(EXIT_REQUEUE)

    threading.Thread(target=wait_for_the_end, name="lifeline", daemon=True).start()


@dataclass(frozen=True)
class End:
    """How a set of ranks ended: the exit code of the run, and its cause in words."""

    code: int
    reason: str
    told: bool = True       # rank 0 ended by itself and has written the outcome down; else nobody has
    asked: str | None = None    # the signal by which the launcher was asked to stop; it was passed on


def launch(command: Sequence[str], processes: int, logs: Path, started: float, on_started: Callable[[], None] = lambda: None,
           hang: Callable[[], str | None] = lambda: None) -> End:
    """Run `command` as ranks 0..processes-1 on this machine until all have ended.  `started`, seconds since 1970, is when the attempt was.

    Rank 0 speaks on the console; every rank writes its own file in `logs` through the program's logging, and what other ranks
    print goes to rank-N.out.  A rank that ends badly ends the others.  Requests to stop are passed on, for certain once
    `on_started` has been called; a HUP that is ignored (nohup) is ignored in the ranks too.  `hang` gives the reason if the ranks have
    found that one of them hangs: then none is waited for.
    """
    with contextlib.suppress(OSError):      # then the ranks speak to nobody, which _output says
        logs.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    os.set_inheritable(ours, True)
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="vitscale-") as folder:
        environment = dict(os.environ)
        environment.update({
            STORE_VARIABLE: str(Path(folder) / "store"), STARTED_VARIABLE: moment(started), LIFELINE_VARIABLE: str(ours),
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        })
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
        asked: list[str] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            asked.append(signal.Signals(number).name)
            for child in children:
                if child.poll() is None:
                    child.send_signal(number)

        def stop_too(number: int, frame: FrameType | None) -> None:
            """Ctrl-Z, which does not reach ranks in sessions of their own: they stop with this process, and go on with it."""
            _tell_groups(children, signal.SIGSTOP)
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)            # stands here until SIGCONT
            signal.signal(signal.SIGTSTP, stop_too)
            _tell_groups(children, signal.SIGCONT)

        previous = {number: signal.signal(number, pass_on) for number in heard()}
        if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:      # else whoever started this process does not want it stopped
            previous[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, stop_too)
        try:
            for rank in range(processes):
                environment.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
                output = None if rank == 0 else _output(logs / f"rank-{rank}.out")
                # a session of its own keeps a terminal's Ctrl-C from reaching ranks twice
                children.append(subprocess.Popen(command, env=dict(environment), pass_fds=(ours,), stdout=output, stderr=output,
                                                 start_new_session=True))
                if output is not None:
                    output.close()
            on_started()
            return replace(_watch(children, logs, hang), asked=asked[0] if asked else None)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(ours)
            os.close(theirs)


def _tell_groups(children: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """The ranks, and what they have started."""
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)


def _output(path: Path) -> BinaryIO:
    """Where a rank prints to: what cannot be opened costs its words, not the run."""
    try:
        return open(path, "ab")
    except OSError as error:
        log.warning("%s: %s; what this rank prints is lost", path, error.strerror or error)
        return open(os.devnull, "wb")


def _watch(children: Sequence[subprocess.Popen[bytes]], logs: Path, hang: Callable[[], str | None]) -> End:
    """Wait until all have ended, or end them once one has ended badly."""
    deadline, ours, hung = None, set[int](), None
    awake = Awake(1.0)      # a launcher that was stopped with its ranks has not waited for them
    while True:
        codes = [child.poll() for child in children]
        if deadline is None and any(codes):
            hung = hang()
            patient = not hung and set(codes) <= {None, EXIT_DONE, EXIT_REQUEUE}    # who stops in good order finishes a checkpoint first
            deadline = awake.look() + (GRACE_S if patient else DEAD_GRACE_S)
        if hung and all(code is not None for code in codes):
            if 0 in ours:
                log.error("%s", hung)       # rank 0 could not say so
            return End(EXIT_REQUEUE, hung)
        if all(code is not None for code in codes):
            return _verdict({rank: code for rank, code in enumerate(codes) if rank not in ours and code}, logs)
        if deadline is not None and awake.look() > deadline:
            for rank, child in enumerate(children):
                if child.poll() is None:
                    ours.add(rank)
                    child.kill()
        time.sleep(0.05)


def _verdict(bad: dict[int, int], logs: Path) -> End:
    """The code of the run from the codes of the ranks that ended badly by themselves: the cause, not what it made others report."""
    if not bad:
        return End(EXIT_DONE, "all ranks are done")
    telling = {EXIT_WRONG_INPUT: 1, EXIT_FAILED: 2, EXIT_REQUEUE: 4}     # before all: death by a signal, which is negative
    rank, code = min(bad.items(), key=lambda item: 0 if item[1] < 0 else telling.get(item[1], 3))
    if code < 0:
        reason = f"rank {rank} was ended by {signal.Signals(-code).name}"
        log.error("%s; the others were ended too", reason)
        return End(EXIT_REQUEUE, reason, told=False)
    if code not in telling:
        code = EXIT_FAILED
    words = _last_words(logs / f"rank-{rank}.out") if rank else ""
    if words:
        log.error("rank %d ended with code %d; its last words:\n%s", rank, code, words)
    return End(code, words.splitlines()[-1] if words else f"rank {rank} ended with code {code}", told=rank == 0)


def _last_words(path: Path, lines: int = 12) -> str:
    """Of a file that grows from attempt to attempt: read from its end."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - (1 << 16), 0))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def rank_command(arguments: Sequence[str]) -> list[str]:
    """The command line of one rank: this interpreter, this program, these arguments."""
    return [sys.executable, "-m", "vitscale", *arguments]
