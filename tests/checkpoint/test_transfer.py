"""From a pretraining without labels to a classifier: what is left behind, what begins anew, and what is refused as ever."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitscale.checkpoint.store import FACTS, WEIGHTS, CheckpointWriter, RunFacts
from vitscale.checkpoint.weights import read_backbone
from vitscale.errors import CheckpointError
from vitscale.models import build_model, initialise
from vitscale.objectives import build_task
from vitscale.recipe import Checkpoint, Vit
from vitscale.recipe.objectives import Inpainting, Jigsaw, Mae, MaeDecoder, Objective, Rotation

MODEL = Vit(width=16, depth=2, heads=2, mlp=24, patch=4, image=16, classes=7)
MAE = Mae(name="mae", decoder=MaeDecoder(width=8, depth=1, heads=2))
OBJECTIVES = [MAE, Inpainting(name="inpainting", mask_patch=8), Rotation(name="rotation"), Jigsaw(name="jigsaw")]


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def pretrained(folder: Path, objective: Objective, model: Vit = MODEL) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder of a run that has one checkpoint, and its weights."""
    learner = build_task(model, objective).build()
    initialise(learner, 3)
    weights = {name: value.detach().clone() for name, value in learner.named_parameters()}
    writer = CheckpointWriter(folder / "checkpoints", rank=0, lease=None, attempt=1, settings=Checkpoint())
    recipe = {"objective": objective.model_dump(mode="json")}
    writer.save({f"model.{name}": value for name, value in weights.items()}, RunFacts(1, {}, recipe, "ddp", 1))
    writer.close()
    return folder, weights


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_a_classifier_starts_from_each(objective: Objective, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, weights = pretrained(tmp_path, objective)
    shapes = shapes_of(build_model(MODEL))
    with caplog.at_level(logging.INFO):
        found = read_backbone(run, shapes, "classification")
    assert shapes.keys() - found.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(found[name], weights[name]) for name in found)
    left = "decoder_" if objective.name in ("mae", "inpainting") else "head"
    assert f"belong to {objective.name} alone and are left behind ({left}" in caplog.text
    assert "these begin at initial values: head.weight, head.bias" in caplog.text


def test_fine_tuning_with_a_norm_after_the_pooling(tmp_path: Path) -> None:
    """As the paper fine-tunes: the last norm is another one."""
    run, _ = pretrained(tmp_path, MAE, MODEL.model_copy(update={"pool": "mean"}))
    shapes = shapes_of(build_model(MODEL.model_copy(update={"pool": "mean", "pool_norm": True, "head_hidden": 5})))
    found = read_backbone(run, shapes, "classification")
    absent = {f"{name}.{last}" for name in ("fc_norm", "pre_logits.fc", "head") for last in ("weight", "bias")}
    assert shapes.keys() - found.keys() == absent


def test_a_bare_file_is_told_by_its_decoder(tmp_path: Path) -> None:
    _, weights = pretrained(tmp_path, MAE)
    save_file(weights, tmp_path / "mae.safetensors")
    assert read_backbone(tmp_path / "mae.safetensors", shapes_of(build_model(MODEL)), "classification").keys() == {
        name for name in weights if not name.startswith(("decoder_", "mask_token"))}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_the_same_objective_takes_everything(objective: Objective, tmp_path: Path) -> None:
    run, weights = pretrained(tmp_path, objective)
    assert read_backbone(run, shapes_of(build_task(MODEL, objective).build()), objective.name).keys() == weights.keys()


def test_a_head_with_as_many_classes_is_still_another_one(tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path, Rotation(name="rotation"))
    shapes = shapes_of(build_model(MODEL.model_copy(update={"classes": 4})))
    assert "head.weight" not in read_backbone(run, shapes, "classification")


@pytest.mark.parametrize(("change", "complaint"), [
    ({"width": 32}, r"'cls_token' is \(1, 1, 16\), this model's is \(1, 1, 32\)"), ({"depth": 3}, "has no 'blocks.2"),
    ({"depth": 1}, "has 'blocks.1.*which this model lacks"), ({"pool": "mean"}, "'pos_embed' is"), ({"registers": 1}, "has no 'reg_token'"),
    ({"position": "sincos"}, "has 'pos_embed', which this model lacks"),
])
def test_another_backbone_is_refused(change: dict, complaint: str, tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path, MAE)
    with pytest.raises(CheckpointError, match=complaint):
        read_backbone(run, shapes_of(build_model(MODEL.model_copy(update=change))), "classification")


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    """Only a pretraining may lack one: here it would be a mistake."""
    model = build_model(MODEL)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_file({name: value for name, value in weights.items() if not name.startswith("head.")}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"has no 'head\.weight'"):
        read_backbone(tmp_path / "w.safetensors", shapes_of(model), "classification")
    save_file(weights, tmp_path / "w.safetensors")
    other = shapes_of(build_model(MODEL.model_copy(update={"classes": 9})))
    with pytest.raises(CheckpointError, match=r"'head.weight' is \(7, 16\), this model's is \(9, 16\)"):
        read_backbone(tmp_path / "w.safetensors", other, "classification")
    with pytest.raises(CheckpointError, match=r"has no '(mask_token|decoder_)"):
        read_backbone(tmp_path / "w.safetensors", shapes_of(build_task(MODEL, MAE).build()), "mae")


def test_facts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path, MAE)
    (checkpoint,) = (run / "checkpoints").iterdir()
    (checkpoint / FACTS).write_text("{")
    with pytest.raises(CheckpointError, match=FACTS):
        read_backbone(checkpoint / WEIGHTS, shapes_of(build_model(MODEL)), "classification")
