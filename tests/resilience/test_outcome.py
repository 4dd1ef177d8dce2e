"""outcome.json: how a run ended."""

import json
import time
from pathlib import Path

import pytest

from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT
from vitscale.resilience.outcome import FILE, cause_of_stop, read_outcome, write_outcome


@pytest.mark.parametrize(("code", "state", "cause"), [
    (EXIT_DONE, "done", "done"), (EXIT_WRONG_INPUT, "wrong input", "wrong_input"), (EXIT_FAILED, "failed", "crash"),
    (EXIT_REQUEUE, "stopped early", "killed"),
])
def test_it_says_how_the_run_ended(code: int, state: str, cause: str, tmp_path: Path) -> None:
    write_outcome(tmp_path, code, "because", step=7, best=None, samples_skipped={"decode": 2})
    outcome = json.loads((tmp_path / FILE).read_text())
    assert abs(outcome.pop("time") - time.time()) < 60
    assert outcome == {"state": state, "exit_code": code, "cause": cause, "reason": "because", "step": 7, "best": None,
                       "samples_skipped": {"decode": 2}}


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
    ("SIGUSR2", "7", 120, "time_limit"),
    ("SIGTERM", "7", 120, "time_limit"),
    ("SIGUSR2", "7", 7200, "preemption"),           # a site may send the one signal for both reasons
    ("SIGUSR2", "7", None, "time_limit"),           # older SLURMs do not say when the job would end
    ("SIGTERM", "7", None, "preemption"),
    (None, "7", None, "preemption"),                # another rank received it
])
def test_why_a_run_was_asked_to_stop(sent: str | None, job: str | None, ends_in_s: float | None, cause: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": job, "SLURM_JOB_END_TIME": ends_in_s and str(int(time.time() + ends_in_s))}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cause_of_stop(sent) == cause
