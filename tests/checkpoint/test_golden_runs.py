"""Runs that version 0.1.0 began stay alive: they are resumed, evaluated, exported and reported.

`tests/golden/runs-0.1.0.tar.xz` holds their folders, as they were left: classification is done, the others were killed (SIGKILL) behind
their checkpoint of step 16; `whole.json` says what the same run, never interrupted, trained on and lost in each of its 60 steps."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Run, train
from safetensors.torch import load_file
from typer.testing import CliRunner

from vitscale.checkpoint.load import load
from vitscale.cli import app
from vitscale.evaluate.evaluate import Request, evaluate
from vitscale.parallel.world import World

GOLDEN = Path(__file__).parent.parent / "golden"
ALONE = World(0, 1, 0, 1, torch.device("cpu"), None)
pytestmark = pytest.mark.slow       # whole runs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs and their shards, which is the working directory as it was theirs."""
    with tarfile.open(GOLDEN / "runs-0.1.0.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("name", "otherwise"), [
    ("mae", ["parallel.engine=fsdp", "parallel.processes=2"]),
    ("distillation", ["parallel.processes=2"]),
    ("fsdp", ["parallel.engine=ddp", "parallel.processes=1"]),
    ("zero", ["parallel.engine=fsdp", "parallel.processes=1"]),
])
def test_it_resumes_on_another_engine_and_number_of_ranks(home: Path, name: str, otherwise: list[str]) -> None:
    train(home, *otherwise, recipe=f"runs/{name}/recipe.yaml")
    run, whole = Run(home / "runs" / name), json.loads((home / "whole.json").read_text())[name]
    assert run.samples == whole["samples"]
    assert {str(step): loss for step, loss in run.losses.items()} == pytest.approx(whole["losses"], rel=1e-5)
    assert run.outcome["state"] == "done"
    assert run.outcome["attempt"] == 2


def test_what_is_done_is_evaluated_exported_and_reported(home: Path) -> None:
    ran = home / "runs" / "classification"
    recorded: dict[str, Any] = [row for row in Run(ran).rows() if "eval_loss" in row][-1]
    found = evaluate(Request(str(ran)), ALONE)["results"]["accuracy"]
    assert found["top1"]["value"] == pytest.approx(recorded["eval_top1"], abs=1e-9)
    for which in ("last", "10"):
        call("export", str(ran), "--format", "safetensors", "--checkpoint", which, "--out", str(home / which))
        step = 60 if which == "last" else 10
        kept = load_file(ran / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
        ours = load(str(home / which)).model.state_dict()
        assert kept.keys() == ours.keys()
        assert all(kept[key].equal(ours[key]) for key in kept)
    call("report", str(ran), "--out", str(home / "report.html"))
    assert "classification" in (home / "report.html").read_text()
