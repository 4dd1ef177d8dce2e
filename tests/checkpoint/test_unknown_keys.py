"""Checkpoints whose recipe holds keys that this version does not know: named, and passed over where the model is the same without them."""

import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
from running import Run, train
from typer.testing import CliRunner

from vitscale.checkpoint.load import load
from vitscale.checkpoint.store import FACTS, MANIFEST, checkpoints_in
from vitscale.checkpoint.weights import section_before
from vitscale.cli import app
from vitscale.cluster.resumable import look
from vitscale.errors import CheckpointError
from vitscale.files import sha256_of, write_json
from vitscale.recipe import load_recipe
from vitscale.recipe.upgrade import put, take
from vitscale.recipe.weights import known_of

GOLDEN = Path(__file__).parent.parent / "golden" / "runs-0.1.0.tar.xz"
pytestmark = pytest.mark.slow       # real runs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(GOLDEN) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_if_written_by_another(run: Path, renamed: dict[str, str], added: dict[str, Any]) -> None:
    """Its checkpoints, whole, with these keys in their recipes."""
    for checkpoint in checkpoints_in(run / "checkpoints"):
        told = json.loads((checkpoint / FACTS).read_text())
        for old, new in renamed.items():
            put(told["recipe"], new, take(told["recipe"], old))
        for key, value in added.items():
            put(told["recipe"], key, value)
        write_json(checkpoint / FACTS, told)
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        manifest["files"][FACTS] = {"bytes": (checkpoint / FACTS).stat().st_size, "sha256": sha256_of(checkpoint / FACTS)}
        write_json(checkpoint / MANIFEST, manifest)


def test_weights_are_used_where_the_model_is_the_same(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = home / "runs" / "classification"
    before = load(run)
    as_if_written_by_another(run, {"data.workers": "data.threads"}, {"optim.momentum": 0.9, "observe.beep": True, "model.rope": False})
    with caplog.at_level(logging.WARNING, logger="vitscale"):
        after = load(run)
    assert (after.section, after.transform) == (before.section, before.transform)
    assert "does not know, and passes over: " in caplog.text
    assert all(words in caplog.text for words in ("data.threads (1)", "optim.momentum (0.9)", "observe.beep (True)", "model.rope (False)"))
    assert section_before(after.source) == before.section       # of init
    known = known_of(run)
    assert known is not None
    assert known.values["data.augment.mean"] == list(before.transform.mean)
    for command in (["eval", str(run)], ["export", str(run), "--format", "safetensors", "--out", "out"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output

    with pytest.raises(CheckpointError) as refused:
        look(load_recipe(run / "recipe.yaml"), accept=False)
    assert [line.strip() for line in str(refused.value).splitlines() if " -> " in line] == [
        "data.threads: 1 -> no key of this version", "optim.momentum: 0.9 -> no key of this version"]   # and no default as a change
    as_if_written_by_another(run, {}, {"model.rope": True})
    with pytest.raises(CheckpointError, match=r"without which it would be another one: model.rope \(True\)"):
        load(run)


def test_a_run_goes_on_without_them(home: Path) -> None:
    as_if_written_by_another(home / "runs" / "fsdp", {"data.prefetch": "data.ahead"}, {"optim.momentum": 0.9})
    arguments = ["parallel.engine=ddp", "parallel.processes=1"]
    assert "optim.momentum: 0.9 -> no key of this version" in train(home, *arguments, recipe="runs/fsdp/recipe.yaml", code=2)
    output = " ".join(train(home, *arguments, "--accept-changes", recipe="runs/fsdp/recipe.yaml").split())
    assert "does not know, and passes over: data.ahead (4), optim.momentum (0.9)" in output
    run, whole = Run(home / "runs" / "fsdp"), json.loads((home / "whole.json").read_text())["fsdp"]
    assert {str(step): loss for step, loss in run.losses.items()} == pytest.approx(whole["losses"], rel=1e-5)
