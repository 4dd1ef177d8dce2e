"""A whole sweep of real trainings: killed in the middle, resumed, predicted, judged; the same fit.json as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import Run

from vitscale.cluster.used import changed_in
from vitscale.errors import DataError
from vitscale.recipe import load_recipe
from vitscale.scaling.collect import largest_of, rows_of
from vitscale.scaling.report import fit_points, predict_now

SWEEP = """
name: tiny
base: quickstart
set: {global_batch: 32, optim.warmup: 2 steps, evaluate.every: null, checkpoint.every: 10 steps, checkpoint.best: null,
      observe.exporter: false, observe.peak_flops: 1.0e+11, resilience.preflight: false, data.lanes: 16}
mode: isoflop
sizes: {rule: aspect, widths: [4, 8, 16], width_per_layer: 16, head_width: 4, mlp_ratio: 2}
budgets: [2.5e7, 5.0e7, 1.0e8]
hold_out: 1
epochs: [0.05, 10]
fit: {forms: [chinchilla3], metric: eval_loss}
"""
WAIT_S = 300


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vitscale", "sweep", "tiny.yaml", *arguments],
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, output
    return output


ARCHITECTURES = """
name: tiny
base: quickstart
set: {global_batch: 32, optim.warmup: 2 steps, evaluate.every: null, checkpoint.every: null, checkpoint.best: null,
      observe.exporter: false, observe.peak_flops: 1.0e+11, resilience.preflight: false, data.lanes: 16}
mode: isoflop
models:
  vit: {width: 8, depth: 1, heads: 2, mlp: 16, patch: 2}
  swin: {family: swin, width: 8, depths: [1, 1], heads: [1, 2], window: 2, patch: 2}
  convnext: {family: convnext, widths: [8, 16], depths: [1, 1]}
budgets: [1.25e7, 2.5e7, 5.0e7]
epochs: [0.01, 10]
"""


@pytest.mark.slow  # nine trainings
def test_architectures_side_by_side(place: Path) -> None:
    (place / "tiny.yaml").write_text(ARCHITECTURES)
    told = finished(start(place, "--out", "side", "--jobs", "2"))
    rows = rows_of(place / "side")
    assert [row["reason"] for row in rows] == [None] * 9
    for row in rows:
        shown = rf"^{row['run']} +{row['n']:,} +{row['d']:,} .* {row['eval_loss']:.4f} +{row['eval_top1']:.1%} *$"
        assert re.search(shown, told, re.MULTILINE)
    assert "vitscale compare side" in told
    done = subprocess.run([sys.executable, "-m", "vitscale", "compare", "side", "--json", "side.json", "--batch", "2"], cwd=place,
                          capture_output=True, text=True, check=True)
    largest = [row["run"] for row in rows if row["budget"] == 5e7]
    assert [entry["name"] for entry in json.loads((place / "side.json").read_text())["models"]] == largest
    assert all(run in done.stdout for run in largest)
    with pytest.raises(DataError, match="of several architectures, which follow no one law") as told:
        fit_points(place / "side")
    advice = re.search("`vitscale (fit [^`]*)`", str(told.value))
    assert advice
    subprocess.run([sys.executable, "-m", "vitscale", *advice[1].split()], cwd=place, check=True, timeout=WAIT_S)
    laws = json.loads((place / "side" / "runs-fit" / "groups.json").read_text())
    assert (laws["groups"], laws["fitted"]) == (3, 3)

    changed = ARCHITECTURES.replace("depths: [1, 1], heads: [1, 2]", "depths: [1, 1], heads: [2, 2]")     # of the same size
    assert changed != ARCHITECTURES
    (place / "tiny.yaml").write_text(changed)
    refused = finished(start(place, "--out", "side"), code=2)
    assert "side: holds runs of another sweep" in refused
    assert re.search(r"  swin-d\d+: model.heads: \[1, 2\] -> \[2, 2\]", refused)


def test_the_runs_of_the_largest_budget(tmp_path: Path) -> None:
    """Whether they are done or not, so that nothing is held against runs of a smaller one; without budgets by the images planned."""
    alike = {"n": 5, "u": 50, "c": 1.0, "shape": None, "lr": 1e-3, "batch": 16, "seed": 0, "held_out": False}
    for budget, images in (((1e9, 1e9, 4e9, 4e9, 4e9), (100, 90, 400, 300, 350)), ((None,) * 5, (100, 100, 400, 400, 400))):
        runs = [alike | {"name": name, "budget": one, "d": d} for name, one, d in zip("abcde", budget, images, strict=True)]
        (tmp_path / "sweep.json").write_text(json.dumps({"metric": "eval_loss", "runs": runs}))
        for name, d in zip("abcd", images[:4], strict=True):
            (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
            outcome = {"state": "done", "images": d + (name == "c") * 9, "eval_loss": 1.0}     # the last batch is a whole one
            (tmp_path / "runs" / name / "outcome.json").write_text(json.dumps(outcome))
        assert largest_of(str(tmp_path)) == ([str(tmp_path / "runs" / "c"), str(tmp_path / "runs" / "d")], ["e: not finished: not started"])
    for name in "cd":
        (tmp_path / "runs" / name / "outcome.json").unlink()
    with pytest.raises(DataError, match=r"of its largest budget no run is done(.|\n)*d: not finished: not started"):
        largest_of(str(tmp_path))
    assert largest_of("elsewhere") == (["elsewhere"], [])


@pytest.mark.timeout(600)
@pytest.mark.slow  # two sweeps of nine trainings
def test_killed_and_resumed_with_an_identical_fit(place: Path) -> None:
    (place / "tiny.yaml").write_text(SWEEP)
    whole = finished(start(place, "--out", "whole", "--jobs", "2"))
    assert "9 runs" in whole
    assert "predicted before it runs" in whole

    hurt = start(place, "--out", "hurt", "--jobs", "2")
    deadline = time.monotonic() + WAIT_S
    while len(list((place / "hurt" / "runs").glob("*/outcome.json"))) < 2:
        assert hurt.poll() is None, hurt.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hurt.send_signal(signal.SIGKILL)
    hurt.communicate()
    done = {
        path.parent: path.stat().st_mtime_ns
        for path in (place / "hurt" / "runs").glob("*/outcome.json")
        if json.loads(path.read_text())["state"] == "done"
    }
    assert done
    time.sleep(1)
    finished(start(place, "--out", "hurt", "--jobs", "2"))

    for folder, changed in done.items():  # a finished point never runs again
        assert (folder / "outcome.json").stat().st_mtime_ns == changed
        assert len(Run(folder).rows("attempts.jsonl")) == 1
    one, other = (json.loads((place / name / "fit.json").read_text()) for name in ("whole", "hurt"))
    for told, name in ((one, "whole"), (other, "hurt")):
        assert told["data"].pop("source") == name
    assert one == other
    verdict = json.loads((place / "hurt" / "verdict.json").read_text())
    assert verdict["of"] == 3
    assert verdict["predicted_before_start"]
    assert verdict["data_unchanged"]
    begun = min(Run(place / "hurt" / "runs" / one["run"]).rows("attempts.jsonl")[0]["started"] for one in verdict["runs"])
    assert (place / "hurt" / "prediction.json").stat().st_mtime <= begun
    left = {path.name for path in (place / "hurt").iterdir()}
    assert {"runs.csv", "fit.json", "plan.json", "profiles.csv", "figures", "report.html", "prediction.json", "verdict.json"} <= left
    assert "isoflop.svg" in {path.name for path in (place / "hurt" / "figures").iterdir()}
    if (place / "hurt" / "recommended.yaml").exists():
        recipe = load_recipe(place / "hurt" / "recommended.yaml")
        assert recipe.duration.unit == "images"

    # an unfinished run is left out by name, a damaged prediction is never replaced
    worst = place / "hurt" / "runs" / rows_of(place / "hurt")[0]["run"] / "outcome.json"
    worst.write_text(worst.read_text().replace('"done"', '"stopped early"'))
    with pytest.raises(DataError, match=f"got 5; 1 were left out: {worst.parent.name}: not finished: stopped early"):
        fit_points(place / "hurt")
    before = (place / "hurt" / "prediction.json").read_bytes()
    predict_now(place / "hurt")
    assert (place / "hurt" / "prediction.json").read_bytes() == before


@pytest.mark.slow  # a trunk and a branch, in a process that imports torch
def test_a_branch_trains_its_cooldown_alone(place: Path) -> None:
    text = SWEEP.replace("mode: isoflop", "mode: grid").replace(
        "budgets: [2.5e7, 5.0e7, 1.0e8]", "axes: {samples: [320, 960]}\ncooldown: 0.25"
    )
    text = (
        text.replace("widths: [4, 8, 16]", "widths: [8]").replace("hold_out: 1", "hold_out: 0").replace("checkpoint.every: 10 steps, ", "")
    )
    (place / "tiny.yaml").write_text(text)
    process = start(place, "--out", "wsd")
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2, output  # two points carry no law
    assert "wants 6 points or more" in output
    short, long = (Run(place / "wsd" / "runs" / f"w8-l1-d{images}") for images in (320, 960))
    assert short.outcome["images"] == 320
    assert list(short.losses) == [9, 10]  # from the trunk's checkpoint on
    assert list(long.losses) == list(range(1, 31))
    (change,) = changed_in(short.folder)        # what the trunk's steps were made with stays known
    assert str(change).startswith("from step 9 on (attempt 1): optim.cooldown: ")
    assert changed_in(long.folder) == []


def test_a_run_that_fails_is_tried_again_and_then_named(place: Path) -> None:
    text = (
        SWEEP.replace("hold_out: 1", "hold_out: 0\nretries: 1")
        .replace("budgets: [2.5e7, 5.0e7, 1.0e8]", "budgets: [5.0e7]")
        .replace("widths: [4, 8, 16]", "widths: [8]")
    )
    nowhere = "data.lanes: 16, data.prepare: null, data.train: 'data/none/train-{000000..000007}.tar'"
    (place / "tiny.yaml").write_text(text.replace("data.lanes: 16", nowhere))
    output = finished(start(place, "--out", "bad"), code=2)
    assert "1 of 1 run failed" in output
    assert "w8-l1" in output
    assert "Traceback" not in output


def test_the_bill_comes_before_anything_starts(place: Path) -> None:
    (place / "tiny.yaml").write_text(SWEEP)
    (place / "cluster.yaml").write_text("gpu: H100\ngpus_per_node: 1\nprice_per_gpu_hour: 2.5\n")
    output = finished(start(place, "--out", "bill", "--dry-run", "--cluster", "cluster.yaml"))
    assert "9 runs" in output
    assert "(held out)" in output
    assert re.search(r"assume [0-9.e-]+ to [0-9.e-]+ of the peak of H100", output)
    assert not (place / "bill").exists()


def test_another_sweep_does_not_go_into_a_folder_with_runs(place: Path) -> None:
    (place / "tiny.yaml").write_text(
        SWEEP.replace("budgets: [2.5e7, 5.0e7, 1.0e8]", "budgets: [5.0e7]")
        .replace("hold_out: 1", "hold_out: 0")
        .replace("widths: [4, 8, 16]", "widths: [8]")
    )
    (place / "out" / "runs" / "w8-l1-d64").mkdir(parents=True)
    (place / "out" / "sweep.json").write_text(json.dumps({"runs": [{"name": "w8-l1-d64"}]}))
    output = finished(start(place, "--out", "out"), code=2)
    assert "holds runs of another sweep" in output
