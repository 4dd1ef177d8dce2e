"""When tries that achieve nothing are enough: random runs, in which anything may end a try and any file may be lost or damaged.

No process is started.  A machine here is what starts a run again by itself; it ends, as the real ones do, at a code other than 75.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

import pytest

from vitscale.cluster import attempt
from vitscale.cluster.attempt import RunOver, Unwritable, begin, end
from vitscale.cluster.ended import ended
from vitscale.cluster.ending import TAKEN
from vitscale.cluster.tries import PATIENCE, VARIABLE, RestartLoop, Tries, Try
from vitscale.errors import RecipeError
from vitscale.metrics.system import CAUSES
from vitscale.resilience.outcome import read_outcome, write_outcome
from vitscale.resilience.restarts import begin_attempt
from vitscale.runfolder import furthest_checkpoint

N = 3
# How likely each is lost or damaged after a try.
SOME = {"outcome.json": 0.2, "attempts.jsonl": 0.2, "begun.json": 0.2, "logs": 0.2, "lease": 0.2, "goodput.json": 0.2}
ANY = {**SOME, "tries": 0.5, "checkpoints": 0.2}


@dataclass
class Story:
    """One run: what happens to it, and what is true of it."""

    folder: Path
    random: Random
    clock: list[float]
    lose: dict[str, float] = field(default_factory=dict)      # how likely a file or folder is lost or damaged after a try
    progress: float = 0.0       # how likely a try gets further
    leases: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    fruitless: int = 0          # tries in a row, without those that were preempted
    in_row: int = 0             # with them
    furthest: int = 0
    told: list[str] = field(default_factory=list)

    def a_try(self, env: dict[str, str]) -> int:
        """What the ranks do; returns the code that they end with."""
        random, folder = self.random, self.folder
        code = random.choice([75, 75, 75, 137, 143, 1, 255, 70, 134, 139, random.randrange(4, 256)])
        number = next(self.leases)
        if holds := random.random() < 0.7:
            (folder / "lease").mkdir(exist_ok=True)
            (folder / "lease" / str(number)).touch()
            begin_attempt(folder, number, started=time.time(), step=furthest_checkpoint(folder), images=0, ranks=1, seconds={})
        gets_further = holds and random.random() < self.progress
        if gets_further:
            self.furthest += random.randrange(1, 9)
            (folder / "checkpoints" / f"step-{self.furthest:08d}").mkdir(parents=True)
        cause = random.choice([None, *(cause for cause in CAUSES if cause not in ("done", "wrong_input", "restarts"))])
        if holds and cause is not None:
            write_outcome(folder, 75, "as it ended", cause=cause, attempt=number)
        self.clock[0] += random.choice([1, 60, -3600, 86400, -86400])
        self.damage()
        self.count(gets_further, holds and cause in TAKEN and read_outcome(folder).get("attempt") == number)
        return code

    def count(self, gets_further: bool, preempted: bool) -> None:
        if gets_further:
            self.fruitless = self.in_row = 0
        else:
            self.fruitless += not preempted
            self.in_row += 1

    def damage(self) -> None:
        for name, likely in self.lose.items():
            if self.random.random() >= likely:
                continue
            paths = [path for path in [self.folder / name, *(self.folder / name).glob("**/*")] if path.exists()]
            path = self.random.choice(paths) if paths else None
            if path is None:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            elif self.random.random() < 0.5:
                path.unlink()
            else:
                path.write_bytes(self.random.choice([b"", b"{", b"\xff\x00", b"null", b"[" * 4000, path.read_bytes()[:20]]))

    # What starts it.

    def batch_job(self, job: str) -> int:
        """A job that is requeued until it ends by itself; its script may also be lost with its node."""
        restart = 0
        while True:
            env = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)} if restart else {"SLURM_JOB_ID": job}
            try:
                begun = begin("quickstart", [f"runs_dir={self.folder.parent}", "name=x", f"resilience.max_restarts={N}"], env)
            except (RestartLoop, RunOver, RecipeError, Unwritable) as error:
                self.told.append(str(error))
                if error.exit_code != 75:
                    return error.exit_code
                self.count(False, False)
                restart += 1
                continue
            env[VARIABLE] = begun.token
            Tries(self.folder, N, env).begin()     # rank 0 joins it
            code = self.a_try(env)
            if self.random.random() < 0.8:
                verdict = end(self.folder, code, None, env)
                if verdict.outcome is not None:
                    write_outcome(self.folder, **verdict.outcome)
                    self.told.append(str(verdict.outcome["reason"]))
                if verdict.code != 75:
                    return verdict.code
            restart += 1

    def launcher(self) -> int:
        """`vitscale train --keep-going`, as vitscale/train/start.py does it."""
        tries = Tries(self.folder, N, {})
        for again in itertools.chain([False], itertools.repeat(True)):
            try:
                one = tries.begin(again=again)
            except RestartLoop as error:
                write_outcome(self.folder, error.exit_code, str(error), **error.facts)
                self.told.append(str(error))
                return error.exit_code
            before = tries.before(one)
            Tries(self.folder, N, {VARIABLE: one.token}).begin()
            code = self.a_try({})
            tries.end(one, ended(self.folder, before, code))
        raise AssertionError

    def by_hand(self) -> int:
        """A loop of a shell around `vitscale train`."""
        while True:
            try:
                Tries(self.folder, N, {}).begin()
            except RestartLoop as error:
                write_outcome(self.folder, error.exit_code, str(error), **error.facts)
                self.told.append(str(error))
                return error.exit_code
            self.a_try({})


_recipe = cache(attempt.load_recipe)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1.8e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)       # thousands of times, and no machine fails here
    monkeypatch.setattr(attempt, "load_recipe", lambda name, overrides: _recipe(name, tuple(overrides)))
    return now


def story_of(folder: Path, clock: list[float], seed: int, lose: dict[str, float]) -> Story:
    random = Random(seed)
    often = random.choice([0, 1, 2])
    return Story(folder / "x", random, clock, {name: often * likely for name, likely in lose.items()}, random.choice([0, 0.2, 0.4]))


SEEDS = [*range(12), *(pytest.param(seed, marks=pytest.mark.all) for seed in range(12, 300))]


@pytest.mark.parametrize("seed", SEEDS)
def test_it_ends_with_3_and_one_sentence_but_never_while_it_gets_further(tmp_path: Path, clock: list[float], seed: int) -> None:
    """One machine after another, each started by a person, over the same run folder.  What is lost is anything but tries/."""
    story = story_of(tmp_path, clock, seed, SOME)
    for job in range(3):
        story.fruitless = story.in_row = 0
        machine = story.random.choice(["batch_job", "launcher", "by_hand"])
        code = story.batch_job(str(70 + job)) if machine == "batch_job" else getattr(story, machine)()
        reason = story.told[-1]
        assert code == 3, (machine, reason)
        if machine == "by_hand":
            assert story.in_row == PATIENCE, reason
        else:
            assert story.fruitless == N or story.in_row == PATIENCE, (machine, story.fruitless, story.in_row, reason)
        assert f" {story.in_row} attempts in a row began at " in reason
        assert (f" step {story.furthest} " if story.furthest else " the very beginning ") in reason
        assert reason.count("\n") == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_it_ends_whatever_is_lost(tmp_path: Path, clock: list[float], seed: int) -> None:
    """Also the tries that were noted, all or some, and checkpoints, again and again: SLURM's count and the launcher's memory are left."""
    story = story_of(tmp_path, clock, seed, ANY)
    for job in range(3):
        story.fruitless = story.in_row = 0
        code = story.batch_job(str(70 + job)) if story.random.random() < 0.6 else story.launcher()
        assert code == 3, story.told[-1]
        assert story.fruitless <= N, story.told[-1]
        assert story.in_row <= PATIENCE, story.told[-1]


@pytest.mark.parametrize(("name", "begins"), [
    ("000001.step-0.new.a", True), ("000007.step-40.hand.a", False), ("000007.step-40.restart.4711-2-9f3c", False),
    ("000007.step-40.restart+2.4711-2-9f3c", True), ("000007.step-40.restart+0.4711-0-9f3c", True), ("000007.step-40.refused.a", False)])
def test_a_series_begins_anew_with_a_new_run_and_with_the_first_of_a_job(name: str, begins: bool) -> None:
    """So that what an earlier job got nowhere with does not count against one that was submitted after it."""
    found = Try.named(name)
    assert found is not None
    assert (found.name, found.begins) == (name, begins)
