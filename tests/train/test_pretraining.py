"""Pretraining without labels as a user runs it: it learns, resumes, runs on two ranks, and starts a classifier."""

from pathlib import Path

import pytest
import torch
from running import SMALL, Run, same_as, train
from safetensors.torch import load_file

pytestmark = pytest.mark.slow       # whole runs of real processes
COMMON = [*SMALL, "data.label=null", "model.classes=0", "optim.schedule=constant", "optim.lr=1e-3"]
MAE = [*COMMON, "objective.name=mae", "objective.decoder={width: 32, depth: 1, heads: 2}", "model.position=sincos",
       "evaluate.every=20 steps", "evaluate.early_stopping={}"]
STEPS = 40


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Run, str]:
    """One process, never interrupted, evaluated twice; and what it printed."""
    folder = tmp_path_factory.mktemp("mae")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    output = train(folder, *MAE, "name=mae", f"duration={STEPS} steps")
    return Run(folder / "runs" / "mae"), output


def test_mae_learns_and_is_judged_by_its_loss(mae: tuple[Run, str]) -> None:
    run, output = mae
    losses = list(run.losses.values())
    assert sum(losses[-5:]) / 5 < 0.7       # the mean colour everywhere: 1.0
    evaluations = [row for row in run.rows() if "eval_loss" in row]
    assert [row["eval_images"] for row in evaluations] == [359, 359]
    assert evaluations[1]["eval_loss"] < evaluations[0]["eval_loss"] < 1.0
    assert not any("eval_top1" in row for row in evaluations)
    assert run.outcome["best"] == {"step": STEPS, "metric": "eval_loss", "value": evaluations[1]["eval_loss"]}
    assert f"evaluation  step {STEPS}  loss {evaluations[1]['eval_loss']:.4f}" in output


def test_mae_resumes_where_it_was(mae: tuple[Run, str], place: Path) -> None:
    train(place, *MAE, "name=parts", "duration=22 steps")
    train(place, *MAE, "name=parts", f"duration={STEPS} steps", "--accept-changes")
    same_as(mae[0], Run(place / "runs" / "parts"), last=STEPS)


@pytest.mark.parametrize("engine", [
    pytest.param(["parallel.engine=fsdp"], id="fsdp"),
    pytest.param(["parallel.engine=zero", "parallel.zero_stage=2"], id="zero2", marks=pytest.mark.all)])
def test_two_ranks_hide_the_same_patches_and_learn_the_same(mae: tuple[Run, str], place: Path, engine: list[str]) -> None:
    train(place, *MAE, *engine, "parallel.processes=2", "name=two", f"duration={STEPS} steps")
    two = Run(place / "runs" / "two")
    same_as(mae[0], two, last=STEPS)
    assert two.outcome["eval_loss"] == pytest.approx(mae[0].outcome["eval_loss"], abs=1e-4)


def test_a_classifier_starts_from_mae(mae: tuple[Run, str], place: Path) -> None:
    """It says what it leaves behind; nothing is learned at a rate of 0, so its weights are where it began."""
    run, _ = mae
    settings = [*SMALL, "model.position=sincos", "optim.lr=0", "optim.warmup=0 steps", "data.val=null", "duration=1 steps",
                f"init={run.folder}"]
    output = train(place, *settings, "name=tuned")
    assert "belong to mae alone and are left behind (decoder_blocks, decoder_embed, decoder_norm, decoder_pred, mask_token)" in output
    assert "these begin at initial values: head.weight, head.bias" in output
    began = load_file(place / "runs" / "tuned" / "checkpoints" / "step-00000001" / "model.safetensors")
    trained = load_file(run.folder / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
    assert began.keys() - trained.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, trained[name]) for name, value in began.items() if name in trained)
    assert not began["head.weight"].any()
    assert "blocks: 4 of 3, which begin as 0, 1, 2, 0" in train(place, *settings, "name=deeper", "model.depth=4")
    refused = train(place, *settings, "name=wider", "model.width=64", code=2)
    assert "'cls_token' is (1, 1, 32), this model's is (1, 1, 64)" in refused


def test_rotation_tells_an_accuracy(place: Path) -> None:
    """Of its own classes: those of the samples are not even looked for."""
    train(place, *COMMON, "objective.name=rotation", "data.label=absent", "model.classes=1000", "optim.lr=3e-3", "name=run",
          f"duration={2 * STEPS} steps")
    run = Run(place / "runs" / "run")
    assert run.losses[1] == pytest.approx(1.386294, abs=1e-5)       # log 4: chance
    assert run.outcome["eval_images"] == 359
    assert run.outcome["eval_top1"] > 0.35                          # chance: 0.25
    assert run.outcome["best"]["metric"] == "eval_top1"
