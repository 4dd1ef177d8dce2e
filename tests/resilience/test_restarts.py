"""attempts.jsonl: why each attempt was needed."""

import json
import time
from pathlib import Path

import pytest

from vitscale.errors import EXIT_REQUEUE, CheckpointError
from vitscale.resilience.outcome import write_outcome
from vitscale.resilience.restarts import FILE, Attempt, attempts_of, begin_attempt, restarts_by_cause


def begin(folder: Path, number: int, step: int = 0, ranks: int = 1) -> list[Attempt]:
    return begin_attempt(folder, number, started=100.0 * number, step=step, images=32 * step, ranks=ranks, seconds={"train": number})


def test_a_row_says_what_began_and_how_the_one_before_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts_of(tmp_path) == []
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    begin(tmp_path, 1, ranks=4)
    write_outcome(tmp_path, EXIT_REQUEUE, "rank 2 gave no sign", cause="hang", attempt=1)
    begin(tmp_path, 2, step=8, ranks=2)
    begin(tmp_path, 4, step=16)             # attempt 2 said nothing; 3 never came so far as to write a row
    first, second, third = attempts_of(tmp_path)
    assert (first.attempt, first.started, first.step, first.images, first.ranks) == (1, 100.0, 0, 0, 4)
    assert (first.job, first.node, first.seconds) == ("71", "n3", {"train": 1})
    assert first.host
    assert (first.cause, first.exit_code) == (None, None)
    assert (second.step, second.images, second.cause, second.reason, second.exit_code) == (8, 256, "hang", "rank 2 gave no sign", 75)
    assert (third.attempt, third.cause, third.exit_code) == (4, "killed", None)
    assert restarts_by_cause(attempts_of(tmp_path)) == {"hang": 1, "killed": 1}


def test_the_verdict_of_a_launcher_that_knows_of_no_attempt_counts(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    write_outcome(tmp_path, EXIT_REQUEUE, "rank 1 was ended by SIGKILL", attempt=None)
    assert begin(tmp_path, 2)[-1].reason == "rank 1 was ended by SIGKILL"


def test_an_outcome_from_a_node_whose_clock_is_ahead_is_not_the_next_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, 1)
    ahead = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: ahead)
    write_outcome(tmp_path, EXIT_REQUEUE, "the end of 1", cause="signal", attempt=1)
    monkeypatch.undo()
    assert begin(tmp_path, 2)[-1].cause == "signal"
    assert begin(tmp_path, 3)[-1].cause == "killed"


def test_a_torn_row_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path, 1)
    begin(tmp_path, 2)
    whole = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(whole[:-20])
    assert [row.attempt for row in attempts_of(tmp_path)] == [1]
    assert "line 2 is unreadable" in caplog.text
    assert [row.attempt for row in begin(tmp_path, 3)] == [1, 3]
    assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


def test_a_folder_that_takes_no_more_is_named(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    (tmp_path / FILE).rename(tmp_path / "kept")
    (tmp_path / FILE).mkdir()       # what can neither be read nor replaced
    with pytest.raises(CheckpointError, match=r"attempts.jsonl: cannot be written .*; make room there"):
        begin(tmp_path, 2)
