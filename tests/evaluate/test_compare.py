"""Models side by side: what is measured is of the right size, and what is said follows from it."""

import json
from dataclasses import replace

import pytest
import torch
from running import Run

from vitscale.checkpoint.load import load
from vitscale.errors import RecipeError
from vitscale.evaluate.compare import ComparedModel, as_json, compare, draw, peak_bytes, verdict
from vitscale.export.folder import write_safetensors
from vitscale.models import build_model
from vitscale.recipe.schema import ConvNext, Swin, Vit


def test_a_run_and_its_export_are_the_same_model(trained: Run, tmp_path) -> None:
    loaded = load(trained.folder)
    write_safetensors(loaded, tmp_path / "out")
    ours, theirs = compare([str(trained.folder), str(tmp_path / "out")], torch.device("cpu"), batch=16)
    own = [row for row in trained.rows() if "eval_top1" in row][-1]
    assert ours.top1 == own["eval_top1"]
    assert ours.interval[0] < ours.top1 < ours.interval[1]
    assert ours.images_seen == 6 * 1438
    assert ours.training_flops == pytest.approx(3 * ours.flops * ours.images_seen)
    assert ours.training_images_per_s > 0
    assert theirs.top1 is None
    assert (ours.parameters, ours.flops, ours.peak_bytes) == (theirs.parameters, theirs.flops, theirs.peak_bytes)
    assert ours.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert ours.latency_s > 0
    assert not any(parameter.requires_grad for parameter in load(trained.folder).model.parameters())
    assert json.loads(json.dumps(as_json([ours], torch.device("cpu"), 16)))["models"][0]["name"] == "trained"
    draw([ours, theirs], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("section", [
    Vit(width=16, depth=2, heads=2, mlp=24, patch=4, image=16, classes=5),
    Swin(family="swin", width=8, depths=(2, 2), heads=(2, 4), window=2, patch=2, image=16, classes=5),
    ConvNext(family="convnext", widths=(8, 16), depths=(1, 2), image=16, classes=5),
])
def test_memory_is_parameters_and_what_grows_with_the_batch(section) -> None:
    model = build_model(section)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    small, large = (peak_bytes(model, torch.randn(count, 3, 16, 16)) for count in (4, 8))
    images = 4 * 3 * 16 * 16 * 4
    assert weights + images < small < large
    assert small - weights == pytest.approx((large - weights) / 2, rel=0.15)


ENTRY = ComparedModel("a", "vit", 8, 0.95, (0.93, 0.97), "training", 100, 100, 1000, 1.0, 1.0, 0.01, 100.0, 1)


def test_what_is_said_follows_from_the_numbers() -> None:
    near, far = replace(ENTRY, name="b", top1=0.94, interval=(0.92, 0.96)), replace(ENTRY, name="c", top1=0.5, interval=(0.45, 0.55))
    assert "not told apart" in verdict([near, ENTRY])[0]
    assert verdict([far, ENTRY])[0] == "a is right most often, by 45.00% over c: more than chance"
    other = replace(near, on="10 images of others.tar")
    assert "different sets and are not held side by side: a on" in verdict([other, ENTRY])[0]
    assert not any("most often" in line for line in verdict([other, ENTRY]))
    assert not any("as many images" in line for line in verdict([near, ENTRY]))
    assert "as many images" in verdict([ENTRY, replace(far, images_seen=500, images_per_s=900.0)])[-1]
    assert verdict([ENTRY, replace(far, images_per_s=900.0, parameters=7)])[1] == "c is the fastest in batches, c the smallest"


def test_one_model_is_nothing_to_compare() -> None:
    with pytest.raises(RecipeError, match="two models"):
        compare(["x"], torch.device("cpu"))
