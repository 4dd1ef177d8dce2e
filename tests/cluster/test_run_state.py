"""The one function that says what a run is doing: every combination of what its folder, its processes and SLURM's queue can say."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import accounts_of

from vitscale.checkpoint.lease import _self_description
from vitscale.cluster.slurm import Queued
from vitscale.cluster.state import state_of
from vitscale.cluster.status import status_of, table
from vitscale.processes import start_of
from vitscale.resilience.outcome import write_outcome
from vitscale.runfolder import BEGUN, JOB, mark, write_object

LEASES = ("none", "living", "stopped", "dead", "released", "elsewhere fresh", "elsewhere silent", "elsewhere stale")
OUTCOMES = ("none", "damaged", "of this attempt", "of an earlier one", "later, without a number", "earlier, without a number")
QUEUES = ("unknown", "gone", "RUNNING", "PENDING", "COMPLETING", "SUSPENDED")
BEGINNINGS = ("no job", "before this attempt", "after this attempt")
CODES = (0, 3, 75)
SAID = {0: "done", 2: "wrong input", 3: "failed", 75: "stopped early"}
RECENT = ("of this attempt", "later, without a number")       # written while the job of these cases has been running
STEP, CHECKPOINT = 23, 16


@pytest.fixture(scope="module")
def sleeper() -> Iterator[int]:
    """A process that stands still."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    os.kill(process.pid, 19)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    yield process.pid
    process.kill()
    process.wait()


def make(folder: Path, lease: str, outcome: str, code: int, begun: str, stopped: int, now: float) -> None:
    """A run folder with two attempts, the second of which is as `lease` says; all in the order in which it would have come to be."""
    (folder / "lease").mkdir(parents=True)
    (folder / "checkpoints" / f"step-{CHECKPOINT:08d}").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": STEP, "images": STEP * 32, "time": now - 9, "loss": 2.5,
                                                      "images_per_second": 16.0}) + "\n")
    (folder / "recipe.yaml").write_text("name: x\nglobal_batch: 32\nduration: 100 steps\ndata: {num_samples: 1000}\n")
    attempts = 0 if lease == "none" else 2
    if attempts:
        (folder / "lease" / "1").write_text("{}")
        (folder / "lease" / "1.released").touch()
        told = _self_description()
        if lease == "stopped":
            told |= {"pid": stopped, "start": start_of(stopped)}
        elif lease == "dead":
            told |= {"pid": 2 ** 22 + 1, "start": "1"}
        elif lease.startswith("elsewhere"):
            told |= {"host": "another"}
        told["job"] = None if begun == "no job" else "7"
        path = folder / "lease" / "2"
        path.write_text(json.dumps(told))
        heard = now - {"elsewhere silent": 30, "elsewhere stale": 100, "dead": 10}.get(lease, 2)
        os.utime(path, (heard, heard))
        if lease == "released":
            (folder / "lease" / "2.released").touch()
    file = folder / "outcome.json"
    if outcome == "damaged":
        file.write_text("{")
    elif outcome != "none":
        number = {"of this attempt": attempts or None, "of an earlier one": 1}.get(outcome)
        write_outcome(folder, code, "as tested", attempt=number, step=STEP)
        when = now - 1 if outcome.startswith("later") or outcome == "of this attempt" else now - 300
        file.write_text(json.dumps(json.loads(file.read_text()) | {"time": when}))
        os.utime(file, (when, when))
    if begun != "no job":
        write_object(folder / JOB, {"jobs": ["7"], "time": 0.0, "outcome_before": None})
        later = begun == "after this attempt"
        write_object(folder / BEGUN, {"job": "7", "restart": 0, "nodes": "n[1-2]", "began": now - 100, "before": {
            "lease": attempts if later else max(attempts - 1, -1), "outcome": mark(file) if later else None}})


def is_last_word(lease: str, outcome: str, begun: str) -> bool:
    """Whether the outcome is of the end of all that was begun, by what the names of the cases say."""
    if outcome in ("none", "damaged") or begun == "after this attempt":
        return False
    return outcome in RECENT or lease == "none"


CASES = [case for case in itertools.product(LEASES, OUTCOMES, QUEUES, BEGINNINGS, CODES)
         if case[4] == 75 or case[1] not in ("none", "damaged")]       # no word, no code


def test_every_combination_of_evidence_has_one_true_state(tmp_path: Path, sleeper: int) -> None:
    seen: set[str] = set()
    for number, (lease, outcome, queue, begun, code) in enumerate(CASES):
        now, folder = time.time(), tmp_path / str(number)
        make(folder, lease, outcome, code, begun, sleeper, now)
        elapsed = "0:50"        # the job has run since before the word, and after what is old
        jobs = None if queue == "unknown" else [] if queue == "gone" else [Queued("7", queue, elapsed, "2", "Why", "x")]
        case, found = f"{number}: {lease=} {outcome=} {queue=} {begun=} {code=}", state_of(folder, jobs, now)
        status = status_of(folder, jobs, now)
        seen.add(found.name)
        word, listed = is_last_word(lease, outcome, begun), queue if begun != "no job" else "gone"
        assert (found.name, found.detail) == (status.state, status.detail), case
        assert found.name in ("new", "submitted", "queued", "starting", "running", "suspended", "lost", *SAID.values()), case
        # who lives says so, unless it has said its last word; who is gone does not live
        if lease in ("living", "stopped") and not word:
            assert found.name == ("suspended" if lease == "stopped" or listed == "SUSPENDED" else "running"), case
        if lease in ("none", "dead", "released") or word:
            assert found.name != "running", case
        # an end is told only by a word of the last attempt, and a word of the last attempt is told unless the job goes on
        if found.name in SAID.values():
            assert (word, found.name) == (True, SAID[code]), case
            assert found.detail.startswith("as tested"), case
            assert found.cause is not None, case
            assert found.lost_steps == (STEP - CHECKPOINT if code else None), case
        if word and (listed in ("gone", "unknown", "COMPLETING") or (listed == "RUNNING" and outcome in RECENT)):
            assert found.name == SAID[code], case
        if listed == "PENDING" and lease not in ("living", "stopped"):
            assert (found.name, found.detail) == ("queued", "Why"), case
        # time is left only for who works
        assert (status.eta_s is not None) == (found.name == "running" and found.detail == ""), case
        if lease == "elsewhere silent" and found.name == "running":
            assert found.detail == "no sign of life for 30s", case
        if found.name == "lost":
            assert found.cause == "killed", case
            assert "without a word" in found.detail, case
            if "attempt" in found.detail:
                assert found.lost_steps == STEP - CHECKPOINT, case
                assert "lost: 7 steps since the checkpoint of step 16" in found.detail, case
        if not word and lease in ("dead", "released", "elsewhere stale") and listed == "gone":
            assert found.name == "lost", case
        assert found.name != "new" or (lease == "none" and not word and begun == "no job"), case
        assert len(table([status], 120)) == 2, case
    assert {"queued", "starting", "running", "suspended", "lost", "new", *SAID.values()} - {"wrong input"} <= seen


@pytest.mark.parametrize("lease", LEASES)
def test_status_page_and_report_tell_the_same(tmp_path: Path, sleeper: int, lease: str) -> None:
    for number, (outcome, queue, begun) in enumerate(itertools.product(OUTCOMES, ("unknown", "gone", "PENDING"), BEGINNINGS[1:])):
        folder = tmp_path / str(number)
        make(folder, lease, outcome, 75, begun, sleeper, time.time())
        jobs = None if queue == "unknown" else [] if queue == "gone" else [Queued("7", queue, "0:50", "2", "Why", "x")]
        told = accounts_of(folder, jobs, report=queue == "unknown" and begun == BEGINNINGS[1] and outcome in OUTCOMES[2:4])
        for key in ("state", "cause", "lost_steps", "step", "job", "restarts"):
            assert told.line[key] == getattr(told.status, key), (key, outcome, queue, begun)
            assert not told.report or told.report["run"][key] == told.line[key], (key, outcome, queue, begun)


def test_a_colleagues_job_is_not_gone_because_it_is_not_in_ones_own_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "x", "elsewhere fresh", "none", 75, "before this attempt", 0, time.time())
    assert state_of(tmp_path / "x", []).name == "lost"
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert state_of(tmp_path / "x", []).name == "running"


def test_a_hidden_process_is_not_taken_for_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc may be mounted so that it shows nobody the processes of others."""
    make(tmp_path / "x", "living", "none", 75, "no job", 0, time.time())
    monkeypatch.setattr("vitscale.runfolder.start_of", lambda pid: None)
    assert state_of(tmp_path / "x", None).name == "lost"
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert state_of(tmp_path / "x", None).name == "running"


@pytest.mark.parametrize(("elapsed", "state"), [
    ("0:05", "starting"), ("5:00", "stopped early"), ("1:00:00", "stopped early"), ("1-00:00:00", "stopped early"), ("INVALID", "starting"),
    ("", "starting"),
])
def test_a_job_that_was_started_again_is_not_the_one_that_ended(tmp_path: Path, elapsed: str, state: str) -> None:
    make(tmp_path / "x", "released", "of this attempt", 75, "before this attempt", 0, time.time() - 60)
    assert state_of(tmp_path / "x", [Queued("7", "RUNNING", elapsed, "2", "None", "x")]).name == state


def test_what_was_submitted_after_the_end_and_is_gone_is_told(tmp_path: Path) -> None:
    make(tmp_path / "x", "released", "of this attempt", 3, "no job", 0, time.time())
    write_object(tmp_path / "x" / JOB, {"jobs": ["9"], "time": 0.0, "outcome_before": mark(tmp_path / "x" / "outcome.json")})
    found = state_of(tmp_path / "x", [])
    assert found.name == "failed"
    assert found.detail.endswith("; job 9, submitted since, is not in the queue")
    assert state_of(tmp_path / "x", [Queued("9", "PENDING", "0:00", "2", "Priority", "x")]).name == "queued"


def test_three_starts_that_come_to_nothing_are_not_merely_submitted(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    make(folder, "none", "none", 75, "after this attempt", 0, time.time())
    found = state_of(folder, [])
    assert (found.name, found.cause) == ("lost", "killed")
    assert found.detail == "job 7 began on n[1-2] and ended before a rank had joined, without a word; see its log"
    assert state_of(folder, None).name == "starting"        # where SLURM cannot be asked it may still be on its way
    write_outcome(folder, 3, "3 attempts in a row ended before training began", cause="restarts")
    assert (state_of(folder, []).name, state_of(folder, None).name) == ("failed", "failed")
