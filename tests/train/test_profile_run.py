"""A real run of two ranks that profiles some steps and gives its rows to a tracker; and trackers that fail."""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import pytest
from running import SMALL, Run, train

from vitscale.errors import RecipeError
from vitscale.observe.trackers import Trackers, _Hand, check_trackers, flat


@pytest.mark.slow       # a whole run of two processes
def test_traces_a_summary_and_a_tracker(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = train(place, *SMALL, "name=p", "duration=12 steps", "profile=steps:5-7", "parallel.processes=2", "parallel.engine=fsdp",
                   "observe.trackers=[tensorboard]")
    run = Run(place / "runs" / "p")
    for rank in range(2):
        with gzip.open(run.folder / "profile" / f"rank-{rank}.json.gz", "rt") as file:
            names = [str(event.get("name")) for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]
        assert [name for name in names if name.startswith("vitscale step")] == ["vitscale step 5", "vitscale step 6", "vitscale step 7"]
    summary = (run.folder / "profile" / "summary.md").read_text()
    assert "profile/summary.md" in output
    ranks = re.findall(r"^\| ([01]) \| \S+ \| ([\d.e-]+) \| ([\d.]+)% \| ([\d.]+)% \| (\S+) [kM]?B \|$", summary, re.MULTILINE)
    assert [rank[0] for rank in ranks] == ["0", "1"]
    for _, seconds, idle, exchange, held in ranks:
        assert 0 < float(seconds) < 60
        assert 0 <= float(idle) < 100
        assert 0 < float(exchange) < 100
        assert float(held) > 0
    assert "aten::" in summary
    assert "▁" in summary

    events = EventAccumulator(str(run.folder / "trackers" / "p"))
    events.Reload()
    told = {point.step: point.value for point in events.Scalars("loss")}
    assert told == {step: pytest.approx(loss) for step, loss in run.losses.items()}
    assert {"lr", "images_per_second", "seconds_compute", "eval_top1"} <= set(events.Tags()["scalars"])
    settings = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"parallel.engine" in settings
    assert b"fsdp" in settings

    again = train(place, *SMALL, "name=p", "duration=14 steps", "parallel.processes=2", "parallel.engine=fsdp", "profile=steps:1-2",
                  "--accept-changes")
    assert "done at step 14" in again       # a longer one is accepted, and the profile is free


def test_one_that_is_not_installed_is_named_before_anything_begins(place: Path) -> None:
    absent = next((name for name in ("wandb", "mlflow") if importlib.util.find_spec(name) is None), None)
    if absent is None:
        pytest.skip("all are installed here")
    output = train(place, *SMALL, "name=w", "duration=20 steps", f"observe.trackers=[{absent}]", code=2)
    assert f"observe.trackers: {absent} is not installed; pip install {absent}, or leave it out" in output
    assert "Traceback" not in output


def test_a_library_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(RecipeError, match="wandb"):
        check_trackers(["tensorboard", "wandb"])


def test_a_tracker_that_fails_is_left_with_one_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Trackers([], tmp_path, {}) as trackers:
        class Broken:
            def log(self, values: dict[str, float], step: int) -> None:
                raise ConnectionError("no answer")

        trackers._hands = [_Hand("mlflow", Broken)]
        for step in range(3):
            trackers.row({"event": "checkpoint", "step": step, "seconds": 1.0})     # no row of numbers of the run
            trackers.row({"step": step, "loss": 1.0})
    assert [record.getMessage() for record in caplog.records] == ["tracker mlflow is left: ConnectionError: no answer"]


def test_settings_are_flat_and_plain() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": "x"}) == [("a.b", 1), ("a.c.d", "None"), ("e", "[1, 2]"), ("f", "x")]
