"""Swin, versions 1 and 2: transformers' logits with the same weights, published sizes, masks, windows, other image sizes."""

import pytest
import torch
from reference import fuse, pictures, renamed, shaken
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vitscale.errors import RecipeError
from vitscale.models import build_model, initialise
from vitscale.models.swin import shift_mask, unwindow, windows
from vitscale.plan import anatomy_of, count_params, forward_flops
from vitscale.recipe.schema import Swin
from vitscale.shapes.families import check_model

transformers = pytest.importorskip("transformers")

TINY = {"family": "swin", "width": 16, "depths": (2, 3), "heads": (2, 4), "window": 4, "image": 64, "classes": 5}
THEIRS = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 3], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}

RENAMED = [         # theirs, ours: applied in this order
    ("swinv2.", ""), ("swin.", ""), ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.norm", "patch_embed.norm"),
    ("encoder.", ""), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("attention.self.", "attn."), ("attention.", "attn."),
    ("attn.output.dense", "attn.proj"), ("attn.o_proj", "attn.proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
    ("continuous_position_bias_mlp", "cpb_mlp"), ("relative_position_bias.relative", "relative"),
    ("layernorm", "norm"), ("classifier", "head.fc"),
]


def ours_from(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names: queries, keys and values fused, merging at the head of the next stage."""
    ours: dict[str, Tensor] = {}
    for key, value in theirs.items():
        if "relative_position_index" in key or "relative_coords_table" in key:
            continue
        key = renamed(key, RENAMED)
        if ".downsample." in key:
            _, number, rest = key.split(".", 2)
            key = f"layers.{int(number) + 1}.{rest}"
        ours[key] = value
    fuse(ours, ("query", "key", "value"), "qkv")
    fuse(ours, ("q_proj", "k_proj", "v_proj"), "qkv")
    for name in [name for name in ours if "logit_scale" in name]:       # version 2: no bias of the keys
        stem = name.removesuffix("logit_scale")
        ours[f"{stem}q_bias"], _, ours[f"{stem}v_bias"] = ours.pop(f"{stem}qkv.bias").chunk(3)
    return ours


def pair(version: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    kind = "Swin" if version == 1 else "Swinv2"
    theirs = shaken(getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**THEIRS)))
    ours = build_model(Swin(**TINY, version=version)).eval()
    ours.load_state_dict(ours_from(theirs.state_dict()), strict=True)
    return ours, theirs


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (72, 56)])
def test_logits_and_gradients_equal_transformers(version, height, width):
    ours, theirs = pair(version)
    images = pictures(height, width)
    found, expected = ours(images), theirs(images).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.patch_embed.proj.weight.grad, theirs.get_parameter(
        ("swin" if version == 1 else "swinv2") + ".embeddings.patch_embeddings.projection.weight").grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "version", "window", "image", "count"), [
    ("tiny", 1, 7, 224, 28_288_354), ("small", 1, 7, 224, 49_606_258), ("base", 1, 7, 224, 87_768_224), ("large", 1, 7, 224, 196_532_476),
    ("tiny", 2, 8, 256, 28_347_154), ("small", 2, 8, 256, None), ("base", 2, 16, 256, 87_918_816), ("large", 2, 16, 256, None),
    ("tiny", 2, 32, 256, None),
])
def test_parameters_and_flops_are_exact(size, version, window, image, count):
    """Published counts; without one, the built model's alone.  FLOPs are those that torch counts of one image."""
    section = Swin(family="swin", size=size, version=version, window=window, image=image)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(section)
        model(torch.empty(1, 3, image, image))
    assert count_params(section) == sum(p.numel() for p in model.parameters()) == (count or count_params(section))
    assert forward_flops(section) == counter.get_total_flops()


def test_a_shifted_window_sees_only_former_neighbours():
    """Each token labelled by where it was: after the roll, two of a window see each other if they were less than a window apart."""
    grid, window, shift = (8, 12), 4, 2
    place = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij"), dim=-1)
    cut = windows(place.roll((-shift, -shift), dims=(0, 1))[None], window)[0]                    # (windows, M^2, 2)
    near = ((cut[:, :, None] - cut[:, None, :]).abs() < window).all(dim=-1)
    assert torch.equal(shift_mask(grid, window, shift) == 0, near)
    assert 0.2 < near.float().mean() < 0.9


def test_windows_and_back():
    tokens = torch.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    assert windows(tokens, 4).shape == (2, 6, 16, 3)
    assert torch.equal(windows(tokens, 4)[0, 1], tokens[0, :4, 4:8].reshape(16, 3))
    assert torch.equal(unwindow(windows(tokens, 4), 4, (8, 12)), tokens)


@pytest.mark.parametrize("version", [1, 2])
def test_maps_belong_to_the_logits(version):
    ours, _ = pair(version)
    names = [name for name in ours.feature_names() if name.endswith("attention")]
    found = ours.forward_features(pictures(64, 64), names=[*names, "pooled"])
    torch.testing.assert_close(found["pooled"], ours.forward_features(pictures(64, 64))["pooled"], rtol=1e-4, atol=1e-5)
    assert found["layers.0.blocks.1.attention"].shape == (3, 16, 2, 16, 16)
    for name in names:
        torch.testing.assert_close(found[name].sum(dim=-1), torch.ones_like(found[name][..., 0]))


def test_dropped_branches_and_buffers_after_meta():
    section = Swin(**TINY, drop_path=0.5, version=2)
    with torch.device("meta"):
        model = build_model(section)
    model.to_empty(device="cpu")
    initialise(model, 0)
    direct = build_model(section)
    initialise(direct, 0)
    images = pictures(64, 64)
    assert torch.equal(model(images), direct(images))
    keep = torch.ones(len(model.drop_rates), 3)
    keep[2:] = 0
    assert not torch.equal(model.forward_features(images, keep)["norm"], model.forward_features(images)["norm"])
    assert model.drop_rates[0] == 0
    assert model.drop_rates[-1] == 0.5


@pytest.mark.parametrize("version", [1, 2])
def test_units_are_what_the_planner_takes_them_for(version):
    section = Swin(**TINY, version=version)
    model = build_model(section)
    assert [sum(p.numel() for p in unit.parameters()) for unit in model.units()] == [unit.params for unit in anatomy_of(section).units]


@pytest.mark.parametrize(("change", "key"), [
    ({"window": 5}, "model.window"), ({"image": 60}, "model.image"), ({"heads": (3, 4)}, "model.heads"), ({"heads": (2,)}, "model.heads"),
    ({"width": None}, "model.size"), ({"dropout": 0.1}, "model.dropout"),
])
def test_what_does_not_fit_is_refused(change, key):
    with pytest.raises(RecipeError, match=key):
        check_model(Swin(**{**TINY, **change}))
