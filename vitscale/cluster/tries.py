"""Every try to train a run, noted in tries/ before its work begins, and the one rule by which tries that achieve nothing are enough.

A try is one start of the ranks by whoever starts them: a batch job (`vitscale job begin`), `vitscale train --keep-going`, or a rank that
was started alone.  The first of these that sees it notes it and hands its token on by VITSCALE_TRY, so that it counts once.  A try counts
by what it achieved: a checkpoint beyond the furthest that had ever been published; not by its exit code, its signal, or what it could
still write.

    tries/000007.step-40.restart.4711-2-9f3c    number; furthest checkpoint when it began; kind; token (of SLURM: job-restart-random)
    tries/000007.end                            how it ended

All that counts is in the name: a name is there or not, is never half-written, and a disk without room for a byte mostly still takes it.

Kinds: `new`, a person has begun anew: sbatch, or a start by hand after the run was over, for good or ill (done, wrong input, failed,
refused).  `hand`: a command that a person gave, or a shell's loop; nothing tells them apart.  `restart`: what starts again by itself: a
requeued job, a later job of a chain, --keep-going's and torchrun's next; `restart+2`: the first of its job that is known here, before
which SLURM has counted two that got no further.  `refused`: what was not made.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from vitscale.cluster.ended import Ended, Mark, ended
from vitscale.cluster.ending import TAKEN
from vitscale.cluster.restart_limit import in_words
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT, UserError
from vitscale.files import fsync_folder, names_in, write_atomically
from vitscale.runfolder import ATTEMPTS, JOB, OUTCOME, furthest_checkpoint, mark, read_object, rows_backwards

FOLDER = "tries"
VARIABLE = "VITSCALE_TRY"
PATIENCE = 10       # without a further checkpoint in a row: by hand, or because others took the nodes; then it is enough too
_KEPT = 64          # names, besides those that may count
FINAL = (EXIT_DONE, EXIT_WRONG_INPUT, EXIT_FAILED)
Kind = Literal["new", "hand", "restart", "refused"]
_NAME = re.compile(r"^(\d{6,12})\.step-(\d{1,12})\.(new|hand|restart|refused)(?:\+(\d{1,9}))?\.([A-Za-z0-9_-]+)$")
_SLURM = re.compile(r"^(\d+)-(\d{1,9})-")


class RestartLoop(UserError):
    """Try after try has ended without getting any further."""

    exit_code = EXIT_FAILED

    facts = MappingProxyType({"cause": "restarts"})

    def __init__(self, message: str, run_folder: Path) -> None:
        super().__init__(message)
        self.run_folder = run_folder


@dataclass(frozen=True)
class Try:
    """One try, as its name in tries/ says."""

    number: int
    furthest: int       # the step of the furthest checkpoint when it began; 0: none
    kind: Kind
    token: str
    lost: int | None = None     # of a job's first that is known: how many before it got no further; None: not the first

    @classmethod
    def named(cls, name: str) -> "Try | None":
        found = _NAME.match(name)
        if found is None:
            return None
        return cls(int(found[1]), int(found[2]), found[3], found[5], int(found[4]) if found[4] else None)      # type: ignore[arg-type]

    @property
    def name(self) -> str:
        kind = self.kind if self.lost is None else f"{self.kind}+{self.lost}"
        return f"{self.number:06d}.step-{self.furthest}.{kind}.{self.token}"

    @property
    def begins(self) -> bool:
        """Whether it is the first of a series, for which nothing before it counts."""
        return self.kind == "new" or self.lost is not None

    @property
    def job(self) -> str | None:
        """SLURM's number of it."""
        found = _SLURM.match(self.token)
        return found[1] if found else None

    @property
    def restart(self) -> int:
        """How often SLURM had restarted the job."""
        found = _SLURM.match(self.token)
        return int(found[2]) if found else 0


class Tries:
    """The tries of one run as one process knows them: those in its folder, and its own, should the disk not have taken them."""

    def __init__(self, run_folder: Path, max_restarts: int, env: Mapping[str, str] | None = None) -> None:
        """`max_restarts` in a row that achieve nothing are enough (resilience.max_restarts)."""
        self.run_folder, self.folder, self.max_restarts = run_folder, run_folder / FOLDER, max_restarts
        self._env = os.environ if env is None else env
        self._mine: dict[int, Try] = {}
        self._before: dict[int, Mark] = {}
        self._ends: dict[int, Ended] = {}

    def known(self) -> list[Try]:
        """In the order in which they began.  Raises StorageError."""
        found = {one.number: one for name in names_in(self.folder) if (one := Try.named(name)) is not None}
        return [one for _, one in sorted((self._mine | found).items())]

    def begin(self, *, batch: bool = False, again: bool = False) -> Try:
        """Note a try that begins, or join the one that whoever started this process has noted.  `batch`: by a batch script, before its
        ranks; `again`: by a launcher whose last try has ended.

        Raises RestartLoop, which is noted too, if it is one too many.  Where it cannot be noted, this object alone remembers it: see
        `is_noted`.
        """
        known = self.known()
        if not again and (token := self._env.get(VARIABLE)):
            for one in known:
                if one.token == token:
                    return one
        if known:
            self._settle(known[-1])
        job, restarts = self._slurm()
        kind, furthest = self._kind(known, batch, again), furthest_checkpoint(self.run_folder)
        if kind != "new" and (reason := self._enough(known, kind, furthest, restarts)) is not None:
            self._refuse(reason, furthest)
        is_first = restarts > 0 and not any(one.job == job for one in known)
        return self._note(furthest, kind, self._lost(known, [], furthest, restarts) if is_first else None)

    def is_noted(self, one: Try) -> bool:
        return (self.folder / one.name).exists()

    def before(self, one: Try) -> Mark:
        """What outcome.json was when it began."""
        if one.number in self._before:
            return self._before[one.number]
        told = read_object(self.folder / one.name)
        return told["before"] if "before" in told else mark(self.run_folder / OUTCOME)      # unreadable: then it said nothing since

    def end(self, one: Try, how: Ended) -> None:
        """Note how it ended; on a full disk only this object remembers it.

        What is noted stays: an attempt that was thought dead, and wakes up after the next has noted so, has nothing to add."""
        self._ends[one.number] = how
        if (self.folder / f"{one.number:06d}.end").exists():
            return
        with contextlib.suppress(OSError):
            write_atomically(self.folder / f"{one.number:06d}.end", json.dumps(
                {"cause": how.cause, "reason": how.reason, "exit_code": how.exit_code, **how.facts}) + "\n", durable="content")

    def end_of(self, one: Try) -> Ended:
        """How it ended, as it was noted."""
        if one.number in self._ends:
            return self._ends[one.number]
        value = read_object(self.folder / f"{one.number:06d}.end")
        cause, reason, code = value.get("cause"), value.get("reason"), value.get("exit_code")
        facts = {key: value[key] for key in ("asked_after_s",) if type(value.get(key)) in (int, float)}
        return Ended(cause if isinstance(cause, str) else "killed", reason if isinstance(reason, str) else "it ended without a word",
                     code if type(code) is int else None, facts=facts)

    def refuse_another(self) -> None:
        """Raises RestartLoop, which is noted, if a restart after this batch job's try would be one too many: now, not after another
        wait in the queue."""
        furthest, (_, restarts) = furthest_checkpoint(self.run_folder), self._slurm()
        if (reason := self._enough(self.known(), "restart", furthest, restarts + 1)) is not None:
            self._refuse(reason, furthest)

    # How it is told.

    def _slurm(self) -> tuple[str | None, int]:
        """(job, how often it was restarted)"""
        restarts = self._env.get("SLURM_RESTART_COUNT", "")
        return self._env.get("SLURM_JOB_ID"), int(restarts) if restarts.isdecimal() and len(restarts) < 10 else 0

    def _kind(self, known: Sequence[Try], batch: bool, again: bool) -> Kind:
        job, restarts = self._slurm()
        torch_restarts = self._env.get("TORCHELASTIC_RESTART_COUNT", "0")
        if again or restarts or torch_restarts not in ("", "0") or self._is_later_link(job):
            return "restart"
        if batch or not known or known[-1].kind == "refused":
            return "new"
        return "new" if self.end_of(known[-1]).exit_code in FINAL else "hand"       # after these nothing starts again by itself

    def _is_later_link(self, job: str | None) -> bool:
        jobs = read_object(self.run_folder / JOB).get("jobs")
        return isinstance(jobs, list) and job is not None and job in jobs[1:]

    def _settle(self, last: Try) -> None:
        """Note the end of a try that nobody saw: what it left behind is about to be written over."""
        if last.kind != "refused" and last.number not in self._ends and not (self.folder / f"{last.number:06d}.end").exists():
            self.end(last, ended(self.run_folder, self.before(last)))

    # The rule.

    def _enough(self, known: Sequence[Try], kind: Kind, furthest: int, restarts: int) -> str | None:
        """Why a try of this kind, of a job that was restarted so often, is one too many; None if it is not."""
        job, _ = self._slurm()
        unknown = restarts > 0 and not any(one.job == job for one in known)     # then nothing that is noted came before it
        made = _since_last([] if unknown else [one for one in known if one.kind != "refused"], lambda one: one.begins)
        patience = max(self.max_restarts, PATIENCE)
        all_in_row, lost = _fruitless(made, furthest), 0
        if kind == "restart":
            in_row = _fruitless(_since_last(made, lambda one: one.begins or one.kind == "hand"), furthest)
            lost = self._lost(known, in_row, furthest, restarts)
            counted = [one for one in in_row if self.end_of(one).cause not in TAKEN]
            if len(counted) + lost >= self.max_restarts:
                return self._in_words(in_row, lost, furthest, self.max_restarts)
        if len(all_in_row) + lost >= patience:
            return self._in_words(all_in_row, lost, furthest, patience)
        return None

    def _lost(self, known: Sequence[Try], in_row: Sequence[Try], furthest: int, restarts: int) -> int:
        """How many tries of this batch job SLURM has counted since the last that got further, of which nothing is noted.

        SLURM's count goes on where no disk takes a note, and nobody can delete it.
        """
        job, _ = self._slurm()
        if job is None or not restarts:
            return 0
        mine = [one for one in known if one.job == job]
        if not mine:        # nothing was noted, or nothing is left of it; who held the run folder has a row in attempts.jsonl too
            steps = [step if type(step := row.get("step")) is int else 0 for row in rows_backwards(self.run_folder / ATTEMPTS)
                     if row.get("job") == job]
            stood = len(list(itertools.takewhile(lambda step: step >= furthest, steps)))
            return stood + max(restarts - len(steps), 0)
        before = max([one.restart for one in mine if one not in in_row]
                     + [one.restart - 1 - (one.lost or 0) for one in mine if one.begins], default=-1)
        return max(restarts - before - 1 - len({one.restart for one in mine if before < one.restart < restarts}), 0)

    def _in_words(self, in_row: Sequence[Try], lost: int, furthest: int, limit: int) -> str:
        job, _ = self._slurm()
        return in_words(self.run_folder, [self.end_of(one) for one in in_row], lost, furthest, limit, self.max_restarts, job is not None)

    # Files.

    def _refuse(self, reason: str, furthest: int) -> None:
        self._note(furthest, "refused")
        raise RestartLoop(reason, self.run_folder)

    def _note(self, furthest: int, kind: Kind, lost: int | None = None) -> Try:
        """Its name first, durably; what it says for people only if the disk takes it."""
        job, restarts = self._slurm()
        number = max((one.number for one in self.known()), default=0) + 1
        new = Try(number, furthest, kind, f"{job}-{restarts}-{os.urandom(2).hex()}" if job else f"x{os.urandom(4).hex()}", lost)
        self._mine[number], self._before[number] = new, mark(self.run_folder / OUTCOME)
        content = {"time": time.time(), "host": socket.gethostname(), "node": self._env.get("SLURMD_NODENAME"), "job": job,
                   "restart": restarts, "max_restarts": self.max_restarts, "before": self._before[number]}
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / new.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                with contextlib.suppress(OSError):
                    os.write(descriptor, (json.dumps(content) + "\n").encode())
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            fsync_folder(self.folder)
        self._forget()
        return new

    def _forget(self) -> None:
        """Those that decide nothing any more, once they are many: a start must not take longer for what has been.

        What decides are the last ones, made and refused, more than any rule counts; the last that began a series; and the furthest."""
        known, keep = self.known(), _KEPT + 2 * max(self.max_restarts, PATIENCE)
        if len(known) <= 2 * keep:
            return
        made = [one for one in known if one.kind != "refused"]
        refused = [one for one in known if one.kind == "refused"]
        begun = [one for one in made if one.begins]
        stay = {one.number for one in [*made[-keep:], *refused[-keep:], *begun[-1:], *sorted(made, key=lambda one: one.furthest)[-1:]]}
        for one in known:
            if one.number not in stay:
                for name in (one.name, f"{one.number:06d}.end"):
                    with contextlib.suppress(OSError):
                        (self.folder / name).unlink(missing_ok=True)
                self._mine.pop(one.number, None)


def noted(run_folder: Path, token: str) -> tuple[Try, int] | None:
    """The try with this token, and the max_restarts with which it began (0: unreadable)."""
    one = next((one for one in Tries(run_folder, 0).known() if one.token == token), None)
    if one is None:
        return None
    told = read_object(run_folder / FOLDER / one.name).get("max_restarts")
    return one, told if type(told) is int else 0


def _since_last(tries: Sequence[Try], begins: Callable[[Try], bool]) -> Sequence[Try]:
    """From the last one that `begins` something on; all, if none does."""
    found = [number for number, one in enumerate(tries) if begins(one)]
    return tries[found[-1]:] if found else tries


def _fruitless(tries: Sequence[Try], furthest: int) -> Sequence[Try]:
    """Those at the end during none of which the furthest checkpoint moved; `furthest` is where it is now.  A checkpoint that was lost
    since counts as reached: to reach it again is no progress."""
    marks = list(itertools.accumulate([*(one.furthest for one in tries), furthest], max))
    moved = [number for number, (at, then) in enumerate(itertools.pairwise(marks)) if then > at]
    return tries[moved[-1] + 1:] if moved else tries
