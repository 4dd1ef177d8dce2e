"""outcome.json: how a run ended."""

import inspect
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vitscale
from vitscale.cluster.ending import FACTS
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT
from vitscale.processes import label_of
from vitscale.resilience import watcher
from vitscale.resilience.outcome import FILE, read_outcome, why_stopped, write_outcome


@pytest.mark.parametrize(("code", "state", "cause"), [
    (EXIT_DONE, "done", "done"), (EXIT_WRONG_INPUT, "wrong input", "wrong_input"), (EXIT_FAILED, "failed", "crash"),
    (EXIT_REQUEUE, "stopped early", "killed"),
])
def test_it_says_how_the_run_ended(code: int, state: str, cause: str, tmp_path: Path) -> None:
    write_outcome(tmp_path, code, "because", step=7, best=None, samples_skipped={"decode": 2})
    outcome = json.loads((tmp_path / FILE).read_text())
    assert abs(outcome.pop("time") - time.time()) < 60
    assert abs(label_of(outcome.pop("moment")) - time.time()) < 60
    lost = {} if code == EXIT_DONE else {"lost_steps": 7, "checkpoint_step": 0}
    assert outcome == {"state": state, "exit_code": code, "cause": cause, "step": 7, "best": None, "samples_skipped": {"decode": 2}, **lost,
                       "reason": "because; lost: 7 steps, there is no checkpoint" if lost else "because"}


@pytest.mark.parametrize(("checkpoints", "recorded", "told", "lost"), [
    ([], None, None, ""), ([], 1, None, "; lost: 1 step, there is no checkpoint"), ([8, 16], 16, None, ""), ([8], 5, None, ""),
    ([8, 16], 23, None, "; lost: 7 steps since the checkpoint of step 16"),
    ([8, 16], 20, 23, "; lost: 7 steps since the checkpoint of step 16"),
    ([16], 23, 16, ""),
])
def test_it_says_what_is_lost(checkpoints: list[int], recorded: int | None, told: int | None, lost: str, tmp_path: Path) -> None:
    """`told`: the step that the writer knows of; else the last one recorded counts."""
    for step in checkpoints:
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"damaged-step-{step + 90:08d}").mkdir()
    if recorded is not None:
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {recorded}, "loss": 1.0}}\n{{"event": "checkpoint", "step": 99}}\n')
    write_outcome(tmp_path, EXIT_REQUEUE, "rank 1 was ended by SIGKILL", **({} if told is None else {"step": told}))
    outcome = read_outcome(tmp_path)
    assert outcome["reason"] == f"rank 1 was ended by SIGKILL{lost}"
    assert outcome["lost_steps"] == (int(lost.split()[2]) if lost else 0)


def test_what_is_lost_is_said_once_an_attempt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An attempt may end twice: asked to stop, and interrupted again while it does."""
    for attempt, reason in ((1, "asked to stop by SIGINT"), (1, "asked to stop by SIGINT twice, and ended at once"), (2, "asked to stop")):
        write_outcome(tmp_path, EXIT_REQUEUE, reason, step=7, attempt=attempt)
        assert read_outcome(tmp_path)["reason"] == f"{reason}; lost: 7 steps, there is no checkpoint"
    assert [record.getMessage() for record in caplog.records] == ["lost: 7 steps, there is no checkpoint"] * 2


def test_the_exit_codes_are_those_of_the_handbook() -> None:
    assert (EXIT_DONE, EXIT_WRONG_INPUT, EXIT_FAILED, EXIT_REQUEUE) == (0, 2, 3, 75)


def test_a_later_attempt_has_the_last_word(tmp_path: Path) -> None:
    write_outcome(tmp_path, EXIT_REQUEUE, "asked to stop", step=7, images=448)
    write_outcome(tmp_path, EXIT_DONE, "trained", step=9)
    outcome = json.loads((tmp_path / FILE).read_text())
    assert (outcome["state"], outcome["step"], "images" in outcome) == ("done", 9, False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]     # nothing half-written lies about


def test_a_code_that_is_none_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_outcome(tmp_path, 1, "because")
    assert not (tmp_path / FILE).exists()


def test_a_cause_is_one_of_a_few_words(tmp_path: Path) -> None:
    write_outcome(tmp_path, EXIT_REQUEUE, "no step for 60 s", cause="hang")
    assert read_outcome(tmp_path)["cause"] == "hang"
    with pytest.raises(ValueError, match="'rank 3 hung' is no cause; the causes are done, "):
        write_outcome(tmp_path, EXIT_REQUEUE, "no step for 60 s", cause="rank 3 hung")


@pytest.mark.parametrize("content", [None, b"", b'{"state": "do', b"[1]", b"\xff"])
def test_what_is_not_there_or_damaged_says_nothing(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    assert read_outcome(tmp_path) == {}


@pytest.mark.parametrize(("sent", "job", "ends_in_s", "cause"), [
    ("SIGTERM", None, None, "signal"),
    ("SIGINT", "7", 60, "signal"),                  # from a keyboard
    ("SIGHUP", "7", 60, "signal"),                  # a terminal that was closed
    ("SIGXCPU", None, None, "time_limit"),
    ("SIGUSR2", "7", 120, "time_limit"),
    ("SIGUSR1", "7", 120, "time_limit"),
    ("SIGUSR1", "7", 7200, "preemption"),
    ("SIGUSR1", "7", None, "time_limit"),
    ("SIGUSR1", None, None, "signal"),
    ("SIGTERM", "7", 120, "time_limit"),
    ("SIGUSR2", "7", 7200, "preemption"),           # a site may send the one signal for both reasons
    ("SIGUSR2", "7", None, "time_limit"),           # older SLURMs do not say when the job would end
    ("SIGTERM", "7", None, "preemption"),
    (None, "7", None, "preemption"),                # another rank received it
])
def test_why_a_run_was_asked_to_stop(sent: str | None, job: str | None, ends_in_s: float | None, cause: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")                  # there is no scontrol to ask: tests/cluster/test_ending.py
    for name, value in {"SLURM_JOB_ID": job, "SLURM_JOB_END_TIME": ends_in_s and str(int(time.time() + ends_in_s))}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    asked = why_stopped(sent, "before the first step")
    assert (asked.cause, asked.reason) == (cause, f"asked to stop by {sent or 'a signal to another rank'} before the first step")


def test_slurm_is_asked_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(FACTS, "JobId=7 JobState=COMPLETING Reason=None Restarts=0")
    assert why_stopped("SIGTERM").reason == "asked to stop by SIGTERM: job 7 was cancelled (scancel)"
    assert why_stopped("SIGTERM").cause == "cancelled"
    assert why_stopped("SIGTERM", ask=False).cause == "preemption"


def test_the_small_process_beside_a_rank_can_write_it() -> None:
    """resilience/watcher.py runs without any package that is not Python's own, and imports these when a rank is blocked."""
    names = re.findall(r"^    from (vitscale[.a-z]+) import", inspect.getsource(watcher), re.MULTILINE)
    assert "vitscale.resilience.outcome" in names
    program = f"import sys; sys.path.append(sys.argv[1]); import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program, str(Path(vitscale.__file__).parents[1])],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
