"""A frozen anchor is counted: FLOPs as torch counts them, parameters and memory where it lies, whole or sharded."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models.vit import build
from vitscale.objectives.gram import gram_losses, shrunk
from vitscale.plan import anatomy_of, estimate
from vitscale.plan.frozen import teacher_section
from vitscale.recipe import Recipe
from vitscale.recipe.objectives import Dinov2
from vitscale.recipe.schema import ViewSet, Vit

MODEL = Vit(width=16, depth=2, heads=2, mlp=24, patch=2, image=8, classes=0)
ANCHOR = Vit(width=24, depth=3, heads=2, mlp=20, patch=4, image=20, classes=7, position="rotary", registers=2)
VIEWS = (ViewSet(name="global", count=2), ViewSet(name="local", image=4))
SMALL = {"name": "dinov2", "prototypes": 20, "patch_prototypes": 10, "hidden": 12, "bottleneck": 6}


def folder_of(tmp_path, section: Vit) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"vitscale": "1", "model": section.model_dump(mode="json")}))
    return str(tmp_path)


@pytest.mark.parametrize(("known", "size"), [(True, 16), (True, None), (False, 12)], ids=["larger", "alike", "not there yet"])
def test_an_anchor_costs_what_the_counter_counts(tmp_path, known, size):
    folder = folder_of(tmp_path, ANCHOR) if known else str(tmp_path / "later")
    objective = Dinov2(**SMALL, gram=2.0, gram_teacher=folder, gram_image=size)
    parts = anatomy_of(MODEL, objective, VIEWS)
    plain = anatomy_of(MODEL, Dinov2(**SMALL), VIEWS)
    assert teacher_section(folder) == (ANCHOR if known else None)
    with torch.device("meta"):
        anchor = build((ANCHOR if known else MODEL).model_copy(update={"classes": 0}))
    assert parts.frozen == sum(parameter.numel() for parameter in anchor.parameters())
    assert parts.params == plain.params
    images = torch.empty(2, 3, size or 8, size or 8, device="meta")
    with FlopCounterMode(display=False) as counter:
        features = anchor.forward_features(images, None, ("norm",))["norm"][:, anchor.before:]
    assert parts.surveyed["frozen"] == counter.get_total_flops()
    features = shrunk(features, anchor.patch_embed.grid(images), (4, 4))
    with FlopCounterMode(display=False) as counter:
        gram_losses(torch.empty(2, 16, 16, device="meta"), features)
    assert parts.flops["gram"] + parts.surveyed["gram"] == counter.get_total_flops()
    assert parts.training_flops - plain.training_flops == 3 * parts.flops["gram"] + parts.surveyed["gram"] + parts.surveyed["frozen"]


def recipe(folder: str, engine: str, gram: float) -> Recipe:
    anchored = {"gram": gram, "gram_teacher": folder, "gram_image": 8} if gram else {}
    return Recipe.model_validate({
        "name": "memory", "model": MODEL.model_dump(), "data": {"train": ("x.tar",), "views": [one.model_dump() for one in VIEWS]},
        "objective": {**SMALL, **anchored}, "optim": {"lr": 1e-3}, "global_batch": 64, "duration": "1 steps",
        "parallel": {"engine": engine}})


def test_its_weights_lie_whole_or_sharded(tmp_path):
    folder = folder_of(tmp_path, ANCHOR)
    n = anatomy_of(MODEL, recipe(folder, "ddp", 1.0).objective, VIEWS).frozen
    for engine, share in (("ddp", 4 * n), ("fsdp", n)):
        with_it, without = (estimate(recipe(folder, engine, gram), 4, 16, on_gpu=False) for gram in (1.0, 0.0))
        assert share <= with_it.weights - without.weights <= 4 * n
        assert with_it.optimizer == without.optimizer
        assert with_it.loader > without.loader, "it is shown pixels of its own"
