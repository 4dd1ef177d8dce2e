"""A trained run taken over by another: interpolated, frozen, decayed by depth, with adapters; on two ranks, resumed, as in one go."""

from pathlib import Path

import pytest
import torch
from running import SMALL, Run, train
from safetensors.torch import load_file

from vitscale.checkpoint.load import load
from vitscale.checkpoint.store import WEIGHTS
from vitscale.checkpoint.weights import read_start
from vitscale.errors import CheckpointError, RecipeError
from vitscale.models import build_model
from vitscale.models.lora import with_adapters
from vitscale.models.position import resample
from vitscale.recipe import load_recipe
from vitscale.recipe.schema import Lora

pytestmark = pytest.mark.slow       # each test trains a small model three times, in processes of their own

STEADY = [*SMALL, "optim.schedule=constant", "optim.warmup=0 steps", "optim.lr=1e-3"]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "checkpoints" / run.checkpoints[-1] / WEIGHTS)


def alike(first: Run, second: Run, steps: int) -> None:
    assert second.samples == first.samples
    assert list(first.losses) == list(second.losses) == list(range(1, steps + 1))
    for step in range(1, steps + 1):
        assert second.losses[step] == pytest.approx(first.losses[step], abs=1e-5), step


def test_a_larger_image_with_frozen_blocks_and_rates_by_depth(place: Path, unbroken: Run) -> None:
    """One rank without a stop against two sharded ranks that stop half way and go on as one."""
    options = [*STEADY, f"init={unbroken.folder}", "model.image=16", "optim.layer_decay=0.5", "optim.freeze=1"]
    said = train(place, *options, "name=whole", "duration=12 steps")
    assert "positions interpolated from 4 x 4 to 8 x 8 patches" in said
    assert "optim.freeze=1:" in said
    train(place, *options, "name=halves", "duration=6 steps", "parallel.engine=fsdp", "parallel.processes=2")
    train(place, *options, "name=halves", "duration=12 steps", "--accept-changes")
    whole, halves = Run(place / "runs" / "whole"), Run(place / "runs" / "halves")
    alike(whole, halves, 12)
    before, after = weights_of(unbroken), weights_of(halves)
    assert torch.equal(after["pos_embed"], resample(before["pos_embed"], (4, 4), (8, 8)))
    for name in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "cls_token"):
        assert torch.equal(before[name], after[name]), name
    moves = [float((before[name] - after[name]).abs().max()) for name in ("blocks.1.mlp.fc1.weight", "head.weight")]
    assert 0 < moves[0] < 0.6 * moves[1]    # a quarter of the rate


def test_adapters_learn_and_add_up(place: Path, unbroken: Run) -> None:
    options = [*STEADY, f"init={unbroken.folder}", "lora={rank: 2, alpha: 8}"]
    train(place, *options, "name=whole", "duration=12 steps")
    train(place, *options, "name=halves", "duration=6 steps", "parallel.processes=2")
    train(place, *options, "name=halves", "duration=12 steps", "--accept-changes")
    whole, halves = Run(place / "runs" / "whole"), Run(place / "runs" / "halves")
    alike(whole, halves, 12)
    before, raw = weights_of(unbroken), weights_of(halves)
    name = "blocks.1.attn.qkv"
    assert torch.equal(raw[f"{name}.base_layer.weight"], before[f"{name}.weight"])
    assert torch.equal(raw["blocks.1.mlp.fc1.weight"], before["blocks.1.mlp.fc1.weight"])
    added = 4 * raw[f"{name}.lora_B.default.weight"] @ raw[f"{name}.lora_A.default.weight"]
    assert added.abs().max() > 1e-4
    found = load(halves.folder).model.get_parameter(f"{name}.weight")
    torch.testing.assert_close(found, before[f"{name}.weight"] + added)


def test_other_classes_from_an_exported_folder_by_a_frozen_backbone(place: Path, unbroken: Run) -> None:
    from vitscale.export.folder import write_transformers

    write_transformers(load(unbroken.folder), place / "folder")
    said = train(place, *STEADY, "name=probe", "init=folder", "model.classes=12", "optim.freeze=backbone", "duration=8 steps")
    assert "the head was of 10 classes; this one of 12 classes begins at initial values" in said
    run = Run(place / "runs" / "probe")
    before, after = weights_of(unbroken), weights_of(run)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if not name.startswith("head"))
    assert run.losses[8] < run.losses[1]


def test_mistakes_are_told(unbroken: Run) -> None:
    section = load(unbroken.folder).section
    with pytest.raises(CheckpointError, match=r"'cls_token' is \(1, 1, 32\), this model's is \(1, 1, 48\)"):
        read_start(unbroken.folder, build_model(section.model_copy(update={"width": 48})), "classification")
    with pytest.raises(RecipeError, match=r"ends in 'nothing'; they end in attn\.proj"):
        with_adapters(lambda: build_model(section), Lora(targets=("nothing",)))
    with pytest.raises(RecipeError, match=r"lora\.rank"):
        load_recipe("quickstart", ["lora={rank: 0}"])


@pytest.mark.parametrize("override", ["lora={}", "optim.freeze=1"])
def test_engines_that_cannot_say_so(override: str) -> None:
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        load_recipe("quickstart", ["parallel.engine=zero", override])


def test_layers_of_another_depth_learn_at_another_rate_with_deepspeed_too(place: Path, unbroken: Run) -> None:
    options = [*STEADY, f"init={unbroken.folder}", "optim.layer_decay=0.5", "duration=4 steps"]
    train(place, *options, "name=ddp")
    train(place, *options, "name=zero", "parallel.engine=zero", "parallel.processes=2")
    alike(Run(place / "runs" / "ddp"), Run(place / "runs" / "zero"), 4)
