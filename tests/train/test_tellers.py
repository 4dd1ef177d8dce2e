"""A whole run in which all that only tells fails, in different ways and at different moments: it trains, saves and ends as if nothing were
wrong.  What there is to fail is not listed here: it is whatever an undisturbed run leaves in its folder, and calls to observe/."""

import json
import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from faults import Fault, faults
from running import SMALL, TIMEOUT_S, Run, command, train
from safetensors.torch import load_file

pytestmark = pytest.mark.slow       # whole runs of real processes

# What decides how a run goes on, or is held against another run here; all else in a run folder only tells.
TRAINS = ("checkpoints/", "lease/", "outcome.json", "attempts.jsonl", "skips.jsonl", "logs/samples.jsonl", "logs/stuck/")
TELLING = [*SMALL, "duration=24 steps", "evaluate.every=12 steps", "observe.exporter=true", "observe.log_every=1", "profile=steps:5-6",
           "observe.trackers=[tensorboard]"]
APPENDED = ("metrics.jsonl", "quarantine.jsonl", "logs/rank-0.log")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    train(folder, *TELLING, "name=t")
    return Run(folder / "runs" / "t")


def tellers_of(run: Run) -> list[str]:
    """The files that an undisturbed run has left that only tell, by their paths in the run folder."""
    paths = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file())
    found = [path for path in paths if not path.startswith(TRAINS) and not path.startswith("trackers/")]
    assert {"metrics.jsonl", "logs/rank-0.log", "recipe.yaml", "environment.json", "goodput.json", "report.html", "README.md",
            "logs/totals.json", "profile/summary.md"} <= set(found)
    return [*found, "trackers", "logs/stacks-rank-0.txt"]       # the last is removed where there are none


def weights(run: Run) -> dict[str, torch.Tensor]:
    """What was learned, of each checkpoint."""
    return {f"{path.parent.name} {name}": value for path in sorted((run.folder / "checkpoints").glob("step-*/model.safetensors"))
            for name, value in load_file(path).items()}


def held_against(undisturbed: Run, run: Run) -> None:
    assert run.samples == undisturbed.samples
    learned = weights(run)
    assert "step-00000024" in {name.split()[0] for name in learned}
    torch.testing.assert_close(learned, weights(undisturbed), rtol=1e-4, atol=1e-5)     # sums of threads differ in their last bits
    outcome = run.outcome
    assert (outcome["state"], outcome["exit_code"], outcome["step"]) == ("done", 0, 24)
    assert outcome["eval_top1"] == pytest.approx(undisturbed.outcome["eval_top1"], abs=0.01)
    assert (run.folder / "attempts.jsonl").read_text().count("\n") == 1


def as_folders(undisturbed: Run, folder: Path, console: str) -> None:
    """A folder with something in it lies where each file is to be written: from the start, whatever the user who trains may do."""
    for path in tellers_of(undisturbed):
        (folder / path / "in the way").mkdir(parents=True)


def as_full_devices(undisturbed: Run, folder: Path, console: str) -> None:
    """What is appended to lies on a full device; folders are files."""
    (folder / "logs").mkdir(parents=True)
    for path in APPENDED:
        (folder / path).symlink_to("/dev/full")
    for path in ("trackers", "profile"):
        (folder / path).touch()
    (folder.parent / ".prometheus").touch()


@pytest.mark.parametrize(("spoil", "launcher"), [(as_folders, "--keep-going"), pytest.param(as_full_devices, "", marks=pytest.mark.all)])
def test_every_file_that_only_tells_fails_and_the_console_is_full(spoil, launcher: str, undisturbed: Run, place: Path) -> None:
    run = Run(place / "runs" / "t")
    spoil(undisturbed, run.folder, launcher)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("train", "quickstart", *TELLING, "name=t", *filter(None, [launcher])), cwd=place, stdout=full,
                              stderr=full, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=TIMEOUT_S)
    assert done.returncode == 0
    held_against(undisturbed, run)


# Calls that would raise if there were a mistake in what tells, or in a library that it uses; each with the word that names it in the log.
CALLS = ("vitscale.train.record:device_peak_flops", "vitscale.train.record:write_environment", "vitscale.train.record:metrics_of",
         "vitscale.train.prometheus:withdraw", "vitscale.train.prometheus:RankMetrics.step",
         "vitscale.observe.exporter:Exporter.update", "vitscale.observe.exporter:Exporter.close", "vitscale.observe.readings:host_memory",
         "vitscale.observe.console:ProgressDisplay.__enter__", "vitscale.observe.console:ProgressDisplay.step",
         "vitscale.observe.console:ProgressDisplay.evaluated", "vitscale.observe.console:ProgressDisplay.__exit__",
         "vitscale.observe.trackers:Trackers.row", "vitscale.observe.trackers:Trackers.__exit__",
         "vitscale.observe.profile:glance", "vitscale.observe.report:write_report", "vitscale.observe.report:write_card",
         "vitscale.train.goodput:write_atomically")


@pytest.mark.parametrize("console", ["pipe", pytest.param("terminal", marks=pytest.mark.all)])
def test_every_call_that_only_tells_raises_and_the_console_goes_in_the_middle(console: str, undisturbed: Run, place: Path) -> None:
    run = Run(place / "runs" / "t")
    environment = faults(place, *(Fault("raise", before=call, nth=nth, always=True) for call in CALLS for nth in (1, 2)))
    ours, theirs = pty.openpty() if console == "terminal" else os.pipe()
    process = subprocess.Popen(command("train", "quickstart", *TELLING, "name=t"), cwd=place, stdout=theirs, stderr=theirs,
                               env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=True)
    os.close(theirs)
    reader = threading.Thread(target=read_until_step, args=(ours, run), daemon=True)
    reader.start()
    assert process.wait(TIMEOUT_S) == 0
    reader.join(10)
    held_against(undisturbed, run)
    log = (run.folder / "logs" / "rank-0.log").read_text()
    assert log.count("standard error: ") == 1, log
    assert "Traceback" not in log
    missed = [name for name in ("environment.json", "the display", "the trackers", "the metrics of the run", "the profile")
              if f"{name}: OSError: [Errno 28] No space left on device; training goes on without it (said once)" not in log]
    assert not missed, log


def read_until_step(ours: int, run: Run) -> None:
    """Read what the run prints until it has begun to train, then never again."""
    while not any("loss" in row for row in run.rows()):
        if not os.read(ours, 65536):
            break
    os.close(ours)


def test_a_tracker_that_hangs_from_the_first_word_on_holds_up_neither_steps_nor_the_end(tmp_path: Path, caplog) -> None:
    from vitscale.observe import trackers

    silence, told = threading.Event(), []

    class Silent:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append(step)
            silence.wait(60)

    class Leaving:
        def log(self, values: dict[str, float], step: int) -> None:
            raise SystemExit("a library that gives up")

    with trackers.Trackers([], tmp_path, {}, patience_s=0.2) as some:
        some._hands = [trackers._Hand("mute", lambda: silence.wait(60)), trackers._Hand("silent", Silent),
                       trackers._Hand("leaving", Leaving)]
        for step in range(trackers._MOST + 10):
            some.row({"step": step, "loss": 1.0})
    said = [record.getMessage() for record in caplog.records]
    assert "tracker leaving is left: SystemExit: a library that gives up" in said
    for name in ("mute", "silent"):
        assert sum(f"tracker {name} does not keep up" in line for line in said) == 1
        assert sum(f"tracker {name} is left: it does not answer, 4,096 rows not handed over" in line for line in said) == 1
    assert told == [0]
    silence.set()


def test_rows_that_a_tracker_has_not_taken_yet_are_handed_over_at_the_end(tmp_path: Path) -> None:
    from vitscale.observe import trackers

    told: list[object] = []

    class Slow:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append((step, json.dumps(values)))

        def finish(self) -> None:
            told.append("finished")

    began = threading.Event()
    with trackers.Trackers([], tmp_path, {}) as some:
        some._hands = [trackers._Hand("slow", lambda: Slow() if began.wait(60) else None)]
        for step in range(100):
            some.row({"step": step, "loss": 0.5, "time": 1.0})
        began.set()
    assert told == [*((step, '{"loss": 0.5}') for step in range(100)), "finished"]
