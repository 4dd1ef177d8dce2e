"""Weights that fit by their shapes and would be another function: `init` names what differs."""

from pathlib import Path
from typing import Any

import pytest

from vitscale.checkpoint.load import Loaded
from vitscale.checkpoint.weights import read_start
from vitscale.data.transform import Transform
from vitscale.errors import CheckpointError
from vitscale.export.folder import write_safetensors, write_transformers
from vitscale.models import build_model, initialise
from vitscale.models.adapt import unlike
from vitscale.recipe.schema import Model, Swin, Vit

VIT = Vit(width=24, depth=1, heads=2, mlp=32, patch=4, image=8, classes=3)
SWIN = Swin(family="swin", width=16, depths=(1, 1), heads=(2, 4), window=4, image=32, classes=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for name, section in (("vit", VIT), ("swin", SWIN)):
        model = build_model(section)
        initialise(model, 0)
        loaded = Loaded(model, Transform(section.image, 3), ("a", "b", "c"), section, None, Path("x"))
        write_safetensors(loaded, root / name)
        write_transformers(loaded, root / f"{name}-transformers")
    return root


@pytest.mark.parametrize(("section", "change", "key"), [
    (VIT, {"heads": 4}, "heads"), (VIT, {"norm_eps": 1e-3}, "norm_eps"), (VIT, {"hidden_act": "quick_gelu"}, "hidden_act"),
    (VIT, {"mup_base_width": 12, "mup_base_head_width": 12}, "mup_base_head_width"), (SWIN, {"heads": (4, 4)}, "heads"),
    (SWIN, {"norm_eps": 1e-3}, "norm_eps"), (SWIN, {"hidden_act": "relu"}, "hidden_act")])
@pytest.mark.parametrize("library", ["", "-transformers"])
def test_it_is_named_and_how_to_set_it(folder: Path, section: Model, change: dict[str, Any], key: str, library: str) -> None:
    now = section.model_copy(update=change)
    with pytest.raises(CheckpointError, match=rf"was trained with model\.{key} .*set model\.{key}="):
        read_start(folder / f"{section.family}{library}", build_model(now), "classification", now)
    assert read_start(folder / f"{section.family}{library}", build_model(section), "classification", section)


def test_what_is_another_is_told_and_sizes_are_for_others_to_tell() -> None:
    assert unlike(VIT, VIT.model_copy(update={"classes": 5, "image": 16, "drop_path": 0.1, "registers": 2})) == ({}, {})
    assert unlike(VIT, VIT.model_copy(update={"attention": "axial"})) == ({}, {"model.attention": ("full", "axial")})
    assert unlike(VIT, Vit(size="tiny", patch=4, image=8))[0] == {}
    assert unlike(Vit(size="tiny"), Vit(size="tiny", heads=6))[0] == {"model.heads": (3, 6)}
    assert unlike(VIT, SWIN)[0].keys() <= {"model.norm_eps"}
