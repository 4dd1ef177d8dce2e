"""A device that fails on one rank of two: the outcome names rank and node, the next attempt goes on; a bug that repeats ends the run."""

from pathlib import Path

import pytest
from faults import Fault, faults
from running import SMALL, TIMEOUT_S, Run, start

from vitscale.parallel.rank_info import node_name

pytestmark = pytest.mark.slow       # whole runs of real ranks
ECC = ("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported at some other API call, so "
       "the stacktrace below might be incorrect.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.")


def go(place: Path, *arguments: str, meeting: list[Fault]) -> tuple[int, str]:
    process = start(place, *SMALL, "name=r", "duration=20 steps", "data.val=null", *arguments, environment=faults(place, *meeting))
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    return process.returncode, output


def test_a_device_that_fails_on_another_rank_is_told_and_passed_on(place: Path) -> None:
    """First rank 1's device fails; then, in the next attempt, a kernel of it at step 12; and there again in the one after."""
    run = Run(place / "runs" / "r")
    meeting = [Fault("raise", step=10, rank=1, text=ECC),
               Fault("raise", step=12, rank=1, text="CUDA error: device-side assert triggered", always=True)]
    two = ["parallel.processes=2", "resilience.exclude_bad_nodes=true", "resilience.preflight=false"]     # it may find a busy machine slow
    code, output = go(place, *two, meeting=meeting)
    assert code == 75, output
    outcome = run.outcome
    assert (outcome["cause"], outcome["rank"], outcome["node"], outcome["step"]) == ("device", 1, node_name(), 9)
    assert outcome["exclude"] == [node_name()]
    assert outcome["reason"].startswith(f"rank 1 on {node_name()}: RuntimeError: CUDA error: uncorrectable ECC error encountered")
    assert "have the node drained" in outcome["reason"]
    assert "uncorrectable ECC" in output        # rank 0's console
    code, output = go(place, *two, meeting=meeting)
    assert code == 75, output
    assert "resuming from step-00000008" in output
    assert (run.outcome["cause"], run.outcome["step"], run.outcome.get("exclude")) == ("device", 11, None)
    code, output = go(place, *two, meeting=meeting)
    assert code == 3, output
    assert (run.outcome["state"], run.outcome["rank"], run.outcome["attempt"]) == ("failed", 1, 3)
    assert "the same error came at step 11 before: it is no accident" in run.outcome["reason"]
    assert [row["cause"] for row in run.rows("attempts.jsonl")] == [None, "device", "device"]


@pytest.mark.all        # the sorting is in tests/resilience/test_failures.py, the way of the outcome in the test above
@pytest.mark.parametrize(("text", "code", "cause"), [
    ("NCCL Error 2: unhandled system error", 75, "network"), ("CUDA out of memory. Tried to allocate 20.00 MiB", 75, "memory"),
    ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", 3, "crash"), ("the moon is full", 75, "crash")])
@pytest.mark.parametrize("ranks", [1, 2])
def test_other_errors(place: Path, text: str, code: int, cause: str, ranks: int) -> None:
    found, output = go(place, f"parallel.processes={ranks}", meeting=[Fault("raise", step=3, rank=ranks - 1, text=text)])
    assert found == code, output
    outcome = Run(place / "runs" / "r").outcome
    assert (outcome["cause"], outcome["exit_code"], outcome.get("rank")) == (cause, code, 1 if ranks == 2 else None)
    assert text in outcome["reason"]
