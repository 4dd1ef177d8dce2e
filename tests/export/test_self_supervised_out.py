"""Runs of DINO, DINOv2 and DINOv3 go out as their teacher's backbone, to the classes that others know, and in again to be trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitscale.checkpoint.load import load
from vitscale.checkpoint.store import EMA_WEIGHTS, CheckpointWriter, RunFacts
from vitscale.checkpoint.weights import read_start
from vitscale.errors import CheckpointError
from vitscale.export.bring import bring
from vitscale.export.write import write
from vitscale.models import parameter_shapes
from vitscale.objectives import build_task
from vitscale.recipe import Checkpoint, Recipe
from vitscale.recipe.load import check_recipe

transformers = pytest.importorskip("transformers")
HEAD: dict[str, Any] = {"prototypes": 12, "hidden": 10, "bottleneck": 6}
VIT = {"width": 32, "depth": 2, "heads": 4, "mlp": 64, "patch": 8, "image": 32, "classes": 0}
SCALED = {**VIT, "layer_scale": 0.1}
# (model, objective, transformers' class, timm's architecture)
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "dino": (VIT, {"name": "dino", **HEAD}, "ViTModel", "vit_base_patch16_224"),
    "ibot": ({**VIT, "classes": 7, "position": "sincos"}, {"name": "ibot", **HEAD}, "ViTModel", "vit_base_patch16_224"),
    "dinov2": (SCALED, {"name": "dinov2", "patch_prototypes": 9, **HEAD}, "Dinov2Model", "vit_base_patch16_224"),
    "dinov2 with registers": ({**SCALED, "registers": 3}, {"name": "dinov2", "patch_prototypes": 9, **HEAD}, "Dinov2WithRegistersModel",
                              "vit_base_patch16_224"),
    "dinov3": ({**SCALED, "registers": 2, "position": "rotary", "key_bias": False, "rope_shift": 0.1, "rope_jitter": 1.5,
                "rope_rescale": 2.0, "norm_eps": 1e-5}, {"name": "dinov2", "patch_prototypes": 9, **HEAD}, "DINOv3ViTModel",
               "vit_base_patch16_dinov3"),
    "lejepa": (VIT, {"name": "lejepa", "hidden": 8, "embedding": 6}, "ViTModel", "vit_base_patch16_224"),
}


def recipe_of(name: str) -> Recipe:
    model, objective, _, _ = RUNS[name]
    return check_recipe({
        "name": "run", "model": model, "objective": objective, "optim": {"lr": 1e-3}, "global_batch": 64, "duration": "2 steps",
        "data": {"train": "t-*.tar", "label": None, "views": [{"name": "global", "count": 2}, {"name": "local", "image": 16}]}}, "here")


def drawn(recipe: Recipe, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    model = build_task(recipe.model, recipe.objective).build()
    return {name: 0.3 * torch.randn(value.shape, generator=draw) for name, value in model.named_parameters()}


def run_of(folder: Path, name: str) -> tuple[Recipe, dict[str, Tensor]]:
    """A run's folder with a checkpoint whose student and teacher are not alike; what goes out."""
    recipe = recipe_of(name)
    student, teacher = drawn(recipe, 1), drawn(recipe, 2)
    tensors = {f"model.{key}": value for key, value in student.items()}
    if recipe.objective.averages:
        tensors |= {f"ema.{key}": value for key, value in teacher.items()}
    with CheckpointWriter(folder / "checkpoints", rank=0, lease=None, attempt=1, settings=Checkpoint()) as writer:
        writer.save(tensors, RunFacts(2, {}, recipe.model_dump(mode="json"), "ddp", 1))
    return recipe, teacher if recipe.objective.averages else student


@pytest.mark.parametrize("name", RUNS)
def test_the_teacher_goes_out_and_comes_back_to_be_trained_on(name: str, tmp_path: Path) -> None:
    recipe, wanted = run_of(tmp_path / "run", name)
    loaded = load(tmp_path / "run")         # as eval, embed, predict and export do
    assert (loaded.source.name == EMA_WEIGHTS) == recipe.objective.averages
    backbone = dict(loaded.model.named_parameters())
    assert backbone
    assert all(torch.equal(value, wanted[key]) for key, value in backbone.items())
    own = wanted.keys() - backbone.keys()
    assert {key.partition(".")[0] for key in own} <= {"dino_head", "ibot_head", "mask_token", "projector"}

    with torch.device("meta"):
        skeleton = build_task(recipe.model, recipe.objective).build()
    for form, what in zip(("transformers", "timm"), RUNS[name][2:], strict=True):
        told = list(write(loaded, form, tmp_path / form))
        assert (f": {what}, " if form == "transformers" else f": timm's {what} changed to ") in told[0]
        assert "verified by transformers" in told[1] if form == "transformers" else "timm" in told[1]
        again = load(tmp_path / form)
        assert again.section.model_dump(exclude={"rope_shift", "rope_jitter", "rope_rescale"}) == loaded.section.model_dump(
            exclude={"rope_shift", "rope_jitter", "rope_rescale"})
        list(bring(tmp_path / form, tmp_path / f"{form} again"))
        for source in (tmp_path / form, tmp_path / f"{form} again"):
            begun = read_start(source, skeleton, recipe.objective.name, recipe.model)
            assert begun.keys() == backbone.keys()
            assert all(torch.equal(begun[key], value) for key, value in backbone.items())
    assert parameter_shapes(loaded.section).keys() == backbone.keys()
    if name == "dinov3":
        assert load(tmp_path / "transformers").section == loaded.section        # its places are jittered on
        config = transformers.AutoConfig.from_pretrained(tmp_path / "transformers")
        assert (config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale) == (0.1, 1.5, 2.0)


def test_a_classifier_begins_it_and_a_head_with_a_hole_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of("dinov2")
    with torch.device("meta"):
        skeleton = build_task(recipe.model, recipe.objective).build()
    backbone = {name: value for name, value in drawn(recipe, 2).items() if not name.startswith(("dino_head", "ibot_head", "mask_token"))}
    save_file(backbone | {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}, tmp_path / "classifier.safetensors")
    begun = read_start(tmp_path / "classifier.safetensors", skeleton, "dinov2")
    assert begun.keys() == backbone.keys()
    whole = drawn(recipe, 3)
    del whole["ibot_head.mlp.layers.1.weight"]
    save_file(whole, tmp_path / "hole.safetensors")
    with pytest.raises(CheckpointError, match=r"has no 'ibot_head\.mlp\.layers\.1\.weight'"):
        read_start(tmp_path / "hole.safetensors", skeleton, "dinov2")
