"""goodput.json: the sums of all attempts add up to the wall time, whatever ended them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitscale.checkpoint.lease import Lease
from vitscale.errors import EXIT_REQUEUE
from vitscale.files import write_json
from vitscale.metrics.system import BUCKETS
from vitscale.observe.meters import Meters
from vitscale.parallel.launch import STARTED_VARIABLE
from vitscale.processes import moment
from vitscale.resilience.outcome import write_outcome
from vitscale.resilience.restarts import FILE as ATTEMPTS_FILE
from vitscale.resilience.restarts import begin_attempt
from vitscale.train.goodput import CLOCK_S, FILE, Goodput, goodput_ratio, process_started, program_started, read_books

approx = pytest.approx
A_LITTLE_S = 0.5        # for what the test itself takes


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_START_TIME", "ENVIRONMENT", STARTED_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lease(tmp_path: Path):
    held = Lease.take(tmp_path)
    yield held
    held.release()


def write_books(folder: Path, started: float, at: float, **seconds: float) -> None:
    write_json(folder / FILE, {"attempt": 1, "started": started, "time": at, "seconds": dict.fromkeys(BUCKETS, 0.0) | seconds})


def test_a_first_attempt_starts_with_its_program(tmp_path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED_VARIABLE, str(time.time() - 30))
    with Goodput(tmp_path, lease, Meters()) as goodput:
        assert goodput.run_seconds()["startup"] == approx(30, abs=A_LITTLE_S)
        assert set(goodput.run_seconds()) == set(BUCKETS)
    books = read_books(tmp_path)
    assert books is not None
    assert sum(books.seconds.values()) == approx(books.time - books.started, abs=0.02)
    assert goodput_ratio(books.seconds) == 0


def test_what_a_killed_attempt_leaves_is_taken_up(tmp_path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began 100 s ago, wrote its books 20 s ago with 5 s of a step under way, and its launcher saw it die 4 s later."""
    now = time.time()
    write_books(tmp_path, now - 100, now - 20, startup=10, train=60, data_wait=3, waiting=1, lost=1)
    with monkeypatch.context() as patch:
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        patch.setattr(time, "time", lambda: now - 16)
        patch.setattr(time, "clock_gettime", lambda which: up - 16)
        write_outcome(tmp_path, EXIT_REQUEUE, "rank 1 was ended by SIGKILL")
    monkeypatch.setenv(STARTED_VARIABLE, str(now - 7))
    with Goodput(tmp_path, lease, Meters()) as goodput:
        spent = goodput.run_seconds()
        assert spent == approx(dict.fromkeys(BUCKETS, 0.0) | {
            "startup": 10 + 7, "train": 60, "data_wait": 3, "waiting": 1 + 9, "lost": 1 + 5 + 4}, abs=A_LITTLE_S)
        assert sum(spent.values()) == approx(time.time() - (now - 100), abs=0.02)
        assert goodput_ratio(spent) == approx(0.6, abs=0.01)
        assert goodput.started == now - 7


@pytest.mark.parametrize("content", [None, "", '{"started": 1, "time"', '{"started": "x", "time": 2, "seconds": {}}', "[]"])
def test_books_that_cannot_be_read_are_replaced_by_those_of_the_beginning(tmp_path: Path, lease: Lease, content: str | None) -> None:
    now = time.time()
    begin_attempt(tmp_path, 1, started=now - 50, step=0, images=0, ranks=1, seconds={"startup": 10.0})
    row = json.loads((tmp_path / ATTEMPTS_FILE).read_text())
    (tmp_path / ATTEMPTS_FILE).write_text(json.dumps(row | {"time": now - 40}) + "\n")
    if content is not None:
        (tmp_path / FILE).write_text(content)
    spent = Goodput(tmp_path, lease, Meters()).run_seconds()
    assert sum(spent.values()) == approx(50, abs=A_LITTLE_S)
    assert spent["startup"] + spent["waiting"] == approx(50, abs=A_LITTLE_S)


def test_attempts_that_overlap_are_not_counted_twice(tmp_path: Path, lease: Lease) -> None:
    """This program is older than the last sign of life of the attempt before it: it has waited for the run folder."""
    now = time.time()
    write_books(tmp_path, now - 100, now + 0.2, startup=1, train=99.2)
    spent = Goodput(tmp_path, lease, Meters()).run_seconds()
    assert sum(spent.values()) == approx(100, abs=A_LITTLE_S)
    assert spent["waiting"] == 0


def test_the_books_are_written_while_the_main_thread_is_busy_and_not_without_the_lease(tmp_path: Path, lease: Lease) -> None:
    meters = Meters()
    meters.begin()
    with Goodput(tmp_path, lease, meters), meters.phase("evaluate"):
        deadline = time.monotonic() + 30
        while read_books(tmp_path).seconds["evaluate"] < 0.5:      # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lease.release()
        newer = Lease.take(tmp_path)
        (tmp_path / FILE).write_text("the newer attempt's")
    newer.release()
    assert (tmp_path / FILE).read_text() == "the newer attempt's"
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "lease"]


def test_when_a_program_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.time()
    program = "import time; time.sleep(0.3); from vitscale.train.goodput import program_started; print(program_started())"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert begin - 0.05 < float(answer) < time.time() - 0.3         # the kernel counts in hundredths
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1000")
    assert program_started() == approx(process_started(), abs=0.05)     # a person's allocation
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    assert program_started() == 1000
    monkeypatch.setenv(STARTED_VARIABLE, "2000")
    assert program_started() == 1000
    assert program_started(not_before=1500) == 2000                 # the second attempt inside one job
    assert program_started(not_before=2500) == approx(process_started(), abs=0.05)
    assert program_started(not_before=begin + 1e6) == begin + 1e6


def test_an_older_slurm_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$*" = "--noheader --job 7 --format=%S" ] && [ "$SLURM_TIME_FORMAT" = %s ] && echo 1234\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("ENVIRONMENT", "BATCH")
    assert program_started() == 1234
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    assert program_started() == approx(process_started(), abs=0.05)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0, -5.0, 86400.0])
@pytest.mark.parametrize("when", ["between attempts", "while the first one ran"])
def test_a_clock_that_is_set_changes_no_sum(tmp_path: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch, when: str, jump_s: float,
                                            caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it is seen in the buckets, which add up all the same."""
    real, shift = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    meters = Meters()
    with Goodput(tmp_path, lease, meters):
        if when == "while the first one ran":
            shift = jump_s
    shift = jump_s
    before = read_books(tmp_path)
    assert before is not None
    spent = Goodput(tmp_path, lease, Meters()).run_seconds()
    for name, seconds in spent.items():
        assert 0 <= seconds < before.seconds[name] + 60, name      # this process's own start lies between
    with Goodput(tmp_path, lease, Meters()):
        pass
    books = read_books(tmp_path)
    assert books is not None
    assert sum(books.seconds.values()) == approx(books.time - books.started, abs=0.05)
    assert "clocks disagree" in caplog.text


class Clocks:
    """The three of a machine: that which is set, and two that nobody sets."""

    def __init__(self) -> None:
        self.true, self.off = 1000.0, 1.8e9

    def time(self) -> float:
        return self.true + self.off

    def monotonic(self) -> float:
        return self.true

    def clock_gettime(self, which: int) -> float:
        return self.true


JUMPS = st.sampled_from([0.0, 0.0, -3600.0, 3600.0, 86400.0, -1.0])
ATTEMPT = st.fixed_dictionaries({
    "gap": st.floats(0, 300), "startup": st.floats(0, 60), "work": st.floats(0, 200), "last": st.floats(0, 5),
    "at start": JUMPS, "at work": JUMPS, "at the end": JUMPS, "between": JUMPS, "outcome": st.booleans()})


@example(attempts=[{"gap": 200.0, "startup": 9.0, "work": 100.0, "last": 3.0, "at start": 0.0, "at work": 3600.0, "at the end": 0.0,
                    "between": -3600.0, "outcome": True}] * 2)      # who told the end had a clock of its own
@given(attempts=st.lists(ATTEMPT, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_whenever_the_clock_is_set_the_parts_add_up_to_what_has_passed(attempts: list[dict[str, Any]]) -> None:
    """By some clock of each kind: of the launcher, the attempt, who tells its end."""
    clocks = Clocks()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        for one in ("time", "monotonic", "clock_gettime"):
            patch.setattr(time, one, getattr(clocks, one))
        first, gaps, known = clocks.true, 0.0, {}
        for number, one in enumerate(attempts, 1):
            if number > 1:
                clocks.true += one["gap"]
                gaps += one["gap"]
            patch.setenv(STARTED_VARIABLE, moment(clocks.time()))
            clocks.off += one["at start"]
            clocks.true += one["startup"]
            meters = Meters(clock=clocks.monotonic)
            book = Goodput(folder, cast(Lease, SimpleNamespace(number=number, check=lambda: None)), meters)
            meters.begin()
            clocks.true += one["work"]
            meters.end_step(8)
            clocks.off += one["at work"]
            with book:              # writes when it begins and when it ends
                pass
            known = book.run_seconds()
            assert sum(known.values()) == approx(clocks.true - first, abs=number * (CLOCK_S + 0.1))
            assert known["waiting"] == approx(gaps, abs=number * CLOCK_S + sum(one["last"] for one in attempts[:number]))
            assert known["startup"] == approx(sum(one["startup"] for one in attempts[:number]), abs=number * CLOCK_S)
            assert known["train"] == approx(sum(one["work"] for one in attempts[:number]), abs=0.01)
            assert known["lost"] <= sum(one["last"] for one in attempts[:number]) + number * CLOCK_S
            clocks.true += one["last"]                      # of a step in which it is killed
            gaps += 0 if one["outcome"] else one["last"]    # then nobody knows when
            clocks.off += one["at the end"]
            if one["outcome"]:
                write_outcome(folder, EXIT_REQUEUE, "rank 1 was ended by SIGKILL")
            clocks.off += one["between"]


def test_books_from_a_host_whose_clock_is_ahead(tmp_path: Path, lease: Lease, caplog: pytest.LogCaptureFixture) -> None:
    now = time.time()
    write_books(tmp_path, now + 3500, now + 3600, startup=10, train=90)
    spent = Goodput(tmp_path, lease, Meters()).run_seconds()
    assert min(spent.values()) >= 0
    assert sum(spent.values()) == approx(100, abs=A_LITTLE_S)
    assert goodput_ratio(spent) == approx(0.9, abs=0.01)
    assert "clocks disagree: what was written there last is +3600 s off" in caplog.text
