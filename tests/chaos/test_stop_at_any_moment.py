"""A request to stop at the moments that are easily forgotten: during start-up, while a checkpoint is written, during evaluation.
Each time by another of the signals that are one."""

import itertools
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from accounts import one_story
from faults import Fault, faults, happened
from running import SMALL, TIMEOUT_S, Run, ranks_of, same_as, start, train

from vitscale.checkpoint.store import damage_in
from vitscale.observe.targets import target_file
from vitscale.parallel.rank_info import node_name
from vitscale.resilience.outcome import why_stopped
from vitscale.stopping import STOPPING

pytestmark = pytest.mark.slow       # one run that is started eight times
SOON_S = 25.0       # for a process that has nothing to finish; those that wait here would wait for 100 s
Moment = Callable[[subprocess.Popen[str]], bool]


def wait_for(moment: Moment, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not moment(process):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.005)


def test_a_request_to_stop_comes_at_any_moment(place: Path, unbroken: Run) -> None:
    arguments = [*SMALL, "name=t", "duration=60 steps", "parallel.processes=2", "evaluate.every=30 steps"]
    run = Run(place / "runs" / "t")

    signals = itertools.cycle(sorted(STOPPING))         # another each time; the run is started nine times

    def stopped(name: str, *wanted: Fault, at: Moment | None = None) -> tuple[int, str, float, signal.Signals]:
        """Start with these faults, ask to stop at a moment (or once the fault has come) -> exit code, output, seconds that it took,
        the signal."""
        here = place / name
        here.mkdir()
        process = start(place, *arguments, environment=faults(here, *wanted))
        wait_for(at or (lambda process: happened(here) != []), process)
        asked = time.monotonic()
        sent = next(signals)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, output, time.monotonic() - asked, sent

    def published() -> list[str]:
        if not (run.folder / "checkpoints").exists():
            return []
        assert list((run.folder / "checkpoints").glob(".*")) == []      # nothing half-written
        assert [damage_in(run.folder / "checkpoints" / name) for name in run.checkpoints] == [None] * len(run.checkpoints)
        return run.checkpoints

    # Python itself is starting: nobody listens yet
    code, _, took_s, sent = stopped("at-once", at=lambda process: True)
    assert code in (-sent, 75)
    assert took_s < SOON_S

    startup = [
        ("indexing", [Fault("sleep", before="vitscale.train.prepare:prepare", seconds=100)], None),
        ("importing", [], lambda process: len(ranks_of(process)) == 2),
        ("joining", [Fault("sleep", before="vitscale.parallel.world:joined", rank=1, seconds=100)], None),  # rank 0 waits inside a library
    ]
    for name, wanted, at in startup:
        code, output, took_s, sent = stopped(name, *wanted, at=at)
        assert code == 75, output
        assert f"asked to stop by {sent.name} before the first step" in output or name == "importing"
        assert "Traceback" not in output
        assert took_s < SOON_S, name
        assert published() == []
        assert run.rows() == []
    assert run.outcome["cause"] == why_stopped(sent.name).cause

    # the checkpoint of step 8 is not published yet: it is, and so is that of the step at which the run stops
    code, output, _, _ = stopped("checkpoint", Fault("sleep", before="vitscale.checkpoint.store:fsync_tree", seconds=2))
    assert code == 75, output
    last = run.outcome["step"]
    assert last > 8
    assert published() == ["step-00000008", f"step-{last:08d}"]

    code, output, took_s, sent = stopped("restoring", Fault("sleep", before="vitscale.checkpoint.store:read_into", rank=1, seconds=100))
    assert code == 75, output
    assert took_s < SOON_S
    assert published()[-1] == f"step-{last:08d}"
    assert run.outcome["cause"] == why_stopped(sent.name).cause
    assert run.outcome["reason"] == f"asked to stop by {sent.name} before the first step"

    # the evaluation is left at once, which may be minutes of it; the next attempt makes it up
    for name in ("evaluation", "evaluation made up"):       # the second time all that there is to save is saved already
        evaluating = Fault("sleep", before="vitscale.train.evaluate:evaluate", seconds=2)
        code, output, _, _ = stopped(name, evaluating, at=lambda process: len(happened(place / name)) == 2)    # noqa: B023  called in this turn
        assert code == 75, output
        assert [row["step"] for row in run.rows() if "eval_loss" in row] == []
        assert run.outcome["step"] == 30
        assert published()[-1] == "step-00000030"

    # the metrics' port is somebody else's, and checkpoints are due by time: whenever that is, nothing else changes by it
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = train(place, *arguments, "checkpoint.every=0.01 seconds", "observe.exporter=true", f"observe.exporter_port={port}")
    assert f"no metrics exporter: 127.0.0.1:{port} cannot be bound" in output
    assert "set observe.exporter_port=0" in output
    assert not target_file(run.folder, node_name()).exists()
    same_as(unbroken, run)
    assert run.outcome["state"] == "done"
    saved = [row["step"] for row in run.rows() if row.get("event") == "checkpoint" and row["step"] > 30]
    assert any(step % 8 for step in saved if step < 60), saved
    assert [row["step"] for row in run.rows() if "eval_loss" in row] == [30, 60]


def test_each_signal_while_training(place: Path) -> None:
    """One after the other, each in the attempt that resumes from the one before; no step is lost and none repeated."""
    arguments = [*SMALL, "name=s", "duration=6000 steps", "checkpoint.every=null"]
    run, last = Run(place / "runs" / "s"), 0
    for sent in (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU):
        process = start(place, *arguments)
        wait_for(lambda process: max(run.losses, default=0) >= last + 2, process)       # noqa: B023  called in this turn
        process.send_signal(sent)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 75, output
        assert run.outcome["reason"] == f"asked to stop by {sent.name}"
        assert run.outcome["cause"] == why_stopped(sent.name).cause
        assert run.checkpoints[-1] == f"step-{run.outcome['step']:08d}"
        assert run.outcome["step"] >= last + 2
        last = run.outcome["step"]
    steps = [row["step"] for row in run.rows() if "loss" in row]
    assert steps == list(range(1, last + 1))
    assert [row["step"] for row in run.rows("logs/samples.jsonl")] == steps


@pytest.mark.parametrize("processes", [1, 2])
def test_two_interrupts_end_it_at_once_and_say_what_is_lost(place: Path, processes: int) -> None:
    """The first one's step never ends, so that it saves nothing before the second."""
    here = place / "held"
    here.mkdir()
    process = start(place, *SMALL, "name=c", "duration=60 steps", f"parallel.processes={processes}",
                    environment=faults(here, Fault("sleep", step=13, seconds=100)))
    wait_for(lambda process: len(happened(here)) == processes, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)             # two of the same signal at once are one
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    told = one_story(place / "runs" / "c", log=output, state="stopped early", cause="signal", lost=4,
                     words=("asked to stop by SIGINT twice, and ended at once", "lost: 4 steps since the checkpoint of step 8"))
    assert told.outcome["attempt"] == 1
    assert output.count("lost: 4 steps") == 1, output
