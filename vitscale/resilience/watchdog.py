"""Each rank's watchdog: a thread that sees when the run does not get on, says which rank is at fault, and ends the attempt."""

import contextlib
import faulthandler
import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO, TypeVar

import torch

from vitscale.awake import Awake
from vitscale.checkpoint.lease import Lease, LeaseLost
from vitscale.errors import EXIT_REQUEUE
from vitscale.recipe.schema import Resilience
from vitscale.resilience.backstop import Backstop, Of
from vitscale.resilience.hang import Culprit, Sighting, judge, place_of
from vitscale.resilience.outcome import read_outcome, write_outcome

log = logging.getLogger(__name__)
FOLDER = "logs/stuck"
_CALL = "call.json"
# Phases that may take as long as starting up.  A checkpoint waits for the one before it to be written, and nobody can tell a slow disk
# from a dead one by less; reading one back waits for the same disk.  A rank that does not answer is found there all the same.
_LONG = ("checkpoint", "restore")
_Batch = TypeVar("_Batch")


class Watchdog:
    """Use as a context manager around the training.  The main thread says that it gets on; that costs it less than a microsecond.

    Past half of `hang_timeout` without a word of it, a rank calls the others by a file in logs/stuck, and every rank that sees the call
    writes there what it sees of itself.  Past the whole, the ranks are compared (hang.py), outcome.json says which is at fault, all
    stacks go to logs/stacks-rank-N.txt, and every rank that still can ends with EXIT_REQUEUE; whoever started them ends the others.
    Files, not messages: what hangs may be what carries messages.  Time counts in which this process could run: one that was stopped and
    continued has not hung.  To ranks that went on meanwhile, it is one that does not answer.

    Until the first step has ended, `startup_timeout` stands for `hang_timeout`.  With `hang_timeout` null nothing is watched.
    """

    def __init__(self, run_folder: Path, *, rank: int, nodes: Sequence[str], attempt: int, settings: Resilience) -> None:
        """`nodes`: the name of each rank's machine.  Made by the main thread, which is the one that is watched."""
        self.run_folder, self.rank, self.nodes, self.attempt = run_folder, rank, nodes, attempt
        self.is_on = settings.hang_timeout is not None
        promised_s, self._startup_s = settings.hang_timeout or math.inf, settings.startup_timeout
        self._tick_s = min(max(promised_s / 30, 0.1), 2.0)
        self._hang_s = promised_s - 2 * self._tick_s        # a look comes every tick: by then a hang is to be named, not suspected
        self._quiet_s = min(max(4 * self._tick_s, 2.0), self._hang_s / 2)      # who has not written for so long does not answer
        # if all lower ranks are silent, the next ones judge: 1, 2, 4, ... of them, so that not every rank reads what all have written
        self._turn_s = 2 * self._tick_s * int(math.log2(rank + 1))
        self._settle_s = 0.5 + 2 * self._tick_s             # until the others have read the verdict and written their stacks
        self._main = threading.get_ident()
        self._seen = (1, 0, "startup")      # step under way, changes of phase in it, phase; replaced as a whole
        self._first_step = True
        self._evaluated = False                             # a batch of it: the first one compiles
        self._sign: Callable[[], int] = lambda: 0
        self._read_slack_s = 0.0
        # how long the thread has found `_seen` and the sign unchanged
        self._awake = Awake(max(2 * self._tick_s, 1.0))
        self._last_seen, self._last_sign, self._idle_since = self._seen, 0, 0.0
        self._call_text, self._called_at = "", -math.inf
        self._written, self._is_written = 0, False
        self._heard: dict[int, tuple[Sighting, float]] = {}     # of each rank the newest sighting, and when it was found to be new
        self._hearing_since = math.inf                      # the first look at what they have written; inf: not yet
        self._guarded_s = 0.0                               # the limit that the backstop is set to; 0: it is not set
        self._guarding, self._ending = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def steps(self) -> int:
        """Steps that have been passed."""
        return self._seen[0] - 1

    # What the main thread says.

    def changed(self, phase: str) -> None:
        """The main thread has entered this phase ("": none)."""
        step, changes, _ = self._seen
        self._seen = (step, changes + 1, phase)
        self._tighten()

    def begin(self, steps: int) -> None:
        """`steps` have been passed by earlier attempts; the first one of this attempt begins."""
        self._seen = (steps + 1, 0, "")

    def step_ended(self, steps: int) -> None:
        """`steps` have been passed by now."""
        self._seen = (steps + 1, 0, "")
        self._first_step = False
        self._tighten()

    def over(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """The same batches, in an evaluation: each that has been worked off is a sign that it gets on."""
        for batch in batches:
            yield batch
            self._evaluated = True
            self.changed("evaluate")

    def reading(self, sign: Callable[[], int], slack_s: float) -> None:
        """What shows that waiting for data gets on: a number that changes, and how long it may stand still beyond the limit."""
        self._sign, self._read_slack_s = sign, slack_s

    def defer_to_hang(self) -> None:
        """For a main thread that fails: if another rank was ended for a hang, this one ends with the same words and not with its own."""
        if not self.is_on:
            return
        if self._awake.seconds - self._called_at < self._hang_s:
            time.sleep(self._settle_s)      # who was ended for it said so before
        if reason := self._told():
            self._end(reason)

    # The thread.

    def __enter__(self) -> "Watchdog":
        if self.is_on:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                if self.rank == 0:
                    self._write(_CALL, {"attempt": self.attempt, "number": 0})
            except OSError as error:
                log.warning("%s: %s; a hang ends this run all the same, but which rank is at fault may not be told", self._folder,
                            error.strerror or error)
            with contextlib.suppress(OSError):      # an earlier attempt's
                (self._folder / f"rank-{self.rank}.json").unlink()
            self._call_text = self._read_call()
            self._stacks = _stacks_file(self.run_folder / "logs" / f"stacks-rank-{self.rank}.txt")
            self._backstop = Backstop(self._stacks, Of(str(self.run_folder.absolute()), self.rank, self.nodes[self.rank], self.attempt))
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.is_on:
            return
        self._stop.set()
        self._thread.join()         # if it is about to end this process, so be it
        self._guarded_s = 0.0
        self._backstop.close()
        self._forget_sighting()
        self._stacks.close()
        with contextlib.suppress(OSError):
            if os.path.getsize(self._stacks.name) == 0:
                os.unlink(self._stacks.name)

    def _watch(self) -> None:
        while True:
            self._guard()
            if self._stop.wait(self._tick_s):
                return
            try:
                self._look(self._awake.look())
            except Exception:       # a run must not die of its watchdog; a full disk is not its business
                log.exception("the watchdog could not look")

    def _guard(self) -> None:
        """Set the backstop anew, to the limit of what the main thread does now."""
        with self._guarding:
            self._guarded_s = math.inf      # a phase that begins while the limit is worked out comes after this, and sets it once more
            limit_s = self._limit_s()
            step, _, phase = self._seen
            self._backstop.set(limit_s + 1, limit_s + max(5.0, limit_s / 4), place_of(phase, step), step - 1)
            self._guarded_s = limit_s

    def _tighten(self) -> None:
        """By the main thread: if it blocks all Python before the thread's next look, the limit of the phase before must not stand."""
        if self._limit_s() < self._guarded_s:
            self._guard()

    def _look(self, now: float) -> None:
        idle_s, patience_s = self._idle_s(now), self._startup_s if self._first_step else self._hang_s
        called_s = self._called_s(now)
        if idle_s >= patience_s / 2:
            if called_s > 3 * self._tick_s:
                self._call(now)
        elif called_s > 6 * self._tick_s:
            self._forget_sighting()
            self._hearing_since = math.inf
            return
        mine = self._sighting(idle_s)
        self._is_written = True
        with contextlib.suppress(OSError):
            self._write(f"rank-{self.rank}.json", asdict(mine))
        if reason := self._told():
            self._end(reason)
        if idle_s < patience_s - self._quiet_s - 3 * self._tick_s + self._turn_s:
            self._heard.clear()
            self._hearing_since = math.inf
            return
        self._hearing_since = min(self._hearing_since, now)
        self._hear(now)
        # only who has listened for longer than that can tell a file that is written again and again from one that was left behind
        if idle_s >= patience_s + self._turn_s and now - self._hearing_since > self._quiet_s:
            answering = {rank: sighting for rank, (sighting, at) in self._heard.items() if now - at <= self._quiet_s}
            verdict = judge(answering | {self.rank: mine}, self.nodes)
            if verdict is not None:
                self._tell(verdict, mine)
                self._end(verdict.reason)

    def _idle_s(self, now: float) -> float:
        seen, sign = self._seen, self._last_sign
        if seen[2] in ("data_wait", "evaluate"):
            sign = self._sign()
        if seen is not self._last_seen or sign != self._last_sign:
            self._last_seen, self._last_sign, self._idle_since = seen, sign, now
        return now - self._idle_since

    def _limit_s(self) -> float:
        phase = self._seen[2]
        if self._first_step or phase in _LONG or (phase == "evaluate" and not self._evaluated):
            return max(self._startup_s, self._hang_s)
        return self._hang_s + (self._read_slack_s if phase in ("data_wait", "evaluate") else 0.0)

    def _sighting(self, idle_s: float) -> Sighting:
        step, changes, phase = self._seen
        waiting, frame = _standing(sys._current_frames().get(self._main))
        self._written += 1
        return Sighting(self.rank, self.nodes[self.rank], os.getpid(), self.attempt, self._written, step, changes, phase,
                        round(idle_s, 1), self._limit_s(), waiting, frame)

    # Files.

    @property
    def _folder(self) -> Path:
        return self.run_folder / FOLDER

    def _write(self, name: str, value: object) -> None:
        """At once or not at all, but without waiting for the disk: nobody reads it after a crash of the machine."""
        beside = self._folder / f".{name}.{self.rank}"
        beside.write_text(json.dumps(value))
        os.replace(beside, self._folder / name)

    def _read_call(self) -> str:
        try:
            return (self._folder / _CALL).read_text()
        except OSError:
            return ""

    def _called_s(self, now: float) -> float:
        """Seconds since some rank was last seen to ask all to write what they see."""
        text = self._read_call()
        if text != self._call_text:
            self._call_text = text
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(text)["attempt"] == self.attempt:
                    self._called_at = now
        return now - self._called_at

    def _call(self, now: float) -> None:
        self._called_at = now
        with contextlib.suppress(OSError):
            self._write(_CALL, {"attempt": self.attempt, "rank": self.rank, "number": self._written + 1})

    def _hear(self, now: float) -> None:
        for rank in range(len(self.nodes)):
            try:
                sighting = Sighting(**json.loads((self._folder / f"rank-{rank}.json").read_text()))
            except (OSError, ValueError, TypeError):
                continue
            known = self._heard.get(rank)
            if sighting.attempt == self.attempt and (known is None or known[0].written != sighting.written):
                self._heard[rank] = (sighting, now)

    def _forget_sighting(self) -> None:
        if self._is_written:
            self._is_written = False
            self._heard.clear()
            with contextlib.suppress(OSError):
                (self._folder / f"rank-{self.rank}.json").unlink()

    # The end.

    def _told(self) -> str | None:
        """The reason, if some rank has already found that this attempt hangs."""
        outcome = read_outcome(self.run_folder)
        if outcome.get("cause") == "hang" and outcome.get("attempt") == self.attempt:
            return str(outcome["reason"])
        return None

    def _tell(self, verdict: Culprit, mine: Sighting) -> None:
        stuck = [{"rank": rank, "node": self.nodes[rank]} for rank in verdict.ranks]
        try:
            Lease(self.run_folder / "lease", self.attempt).check()
            write_outcome(self.run_folder, EXIT_REQUEUE, verdict.reason, cause="hang", attempt=self.attempt, step=mine.step - 1,
                          stuck=stuck)
        except (OSError, LeaseLost) as error:
            log.error("the outcome could not be written: %s", error)

    def _end(self, reason: str) -> None:
        """Leave the stacks, say why, end this process."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)          # the other thread does it
        self._backstop.set(60, self._settle_s + 5)      # the disk that the stacks go to may be what hangs
        print(f"rank {self.rank}, attempt {self.attempt}, {time.strftime('%F %T')}: {reason}", file=self._stacks, flush=True)
        faulthandler.dump_traceback(self._stacks)
        _dump_exchanges(self._folder / f"exchanges-rank-{self.rank}.json")
        log.error(reason)
        log.error("the stacks of all threads are in %s", self._stacks.name)
        time.sleep(self._settle_s)
        os._exit(EXIT_REQUEUE)


def _stacks_file(path: Path) -> TextIO:
    """Where stacks go: elsewhere rather than nowhere."""
    try:
        return open(path, "a")
    except OSError as error:
        descriptor, elsewhere = tempfile.mkstemp(prefix="vitscale-stacks-", suffix=".txt")
        os.close(descriptor)
        log.warning("%s: %s; stacks would go to %s", path, error.strerror or error, elsewhere)
        return open(elsewhere, "a")


def _standing(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread waits for other ranks, and its innermost Python frame: the wait itself is in C code below it."""
    if frame is None:
        return False, "?"
    path, function = frame.f_code.co_filename, frame.f_code.co_name
    waiting = any(part in path for part in ("torch/distributed/", "torch/nn/parallel/", "deepspeed/comm/")) or function == _BACKWARD
    return waiting, f"{function} ({os.path.basename(path)}:{frame.f_lineno})"


_BACKWARD = "_engine_run_backward"      # of torch/autograd/graph.py: gradients are reduced in it


def _dump_exchanges(path: Path) -> None:
    """torch's flight recorder, if this torch has one: which collectives this rank has begun, by number, and which have not ended."""
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        dump = getattr(getattr(torch._C, "_distributed_c10d", None), name, None)
        if dump is not None:
            with contextlib.suppress(Exception):        # it is nobody's promise
                text = dump()
                path.write_text(text.decode() if isinstance(text, bytes) else text)
            return
