"""Weights for another image, patch, pooling or head: where the function must stay the same it does, and what was done is told."""

import pytest
import torch

from vitscale.models import build_model, initialise
from vitscale.models.adapt import adapted
from vitscale.models.names import depth_of
from vitscale.optim.groups import unit_names
from vitscale.recipe.schema import ConvNext, Deit, Model, Swin, Vit

SIZE = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image": 16, "classes": 5}


def shaken(section: Model) -> torch.nn.Module:
    model = build_model(section).eval()
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def pictures(side: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(2))


def moved(old: Model, new: Model, known: bool = True) -> tuple[torch.nn.Module, torch.nn.Module, list[str]]:
    """A model, another one with its weights adapted, and what was said."""
    model, other = shaken(old), shaken(new)
    weights, notes = adapted({name: value.detach() for name, value in model.named_parameters()}, other, old if known else None)
    problems = other.load_state_dict(weights, strict=False)
    assert not problems.unexpected_keys
    return model, other, notes


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("more", [{}, {"class_tokens": 2}, {"class_position": False}, {"registers": 2, "pool": "mean"}])
@torch.no_grad()
def test_a_larger_image_interpolates_as_the_model_itself_does(more, known):
    old = Vit(**SIZE, **more)
    model, other, notes = moved(old, old.model_copy(update={"image": 24}), known)
    torch.testing.assert_close(other(pictures(24)), model(pictures(24)), rtol=0, atol=1e-6)
    assert notes == ["positions interpolated from 4 x 4 to 6 x 6 patches"]


@torch.no_grad()
def test_relative_positions_are_interpolated_too():
    old = Vit(**SIZE, position="relative")
    model, other, notes = moved(old, old.model_copy(update={"image": 24}))
    torch.testing.assert_close(other(pictures(24)), model(pictures(24)), rtol=0, atol=1e-6)
    assert notes == ["relative positions interpolated from 4 x 4 to 6 x 6"]


@torch.no_grad()
def test_a_class_token_takes_its_place_along():
    old = Vit(**SIZE)
    model, other, _ = moved(old, old.model_copy(update={"class_position": False}))
    torch.testing.assert_close(other(pictures(16)), model(pictures(16)), rtol=0, atol=1e-6)
    back, again, _ = moved(old.model_copy(update={"class_position": False}), old)
    torch.testing.assert_close(again(pictures(16)), back(pictures(16)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_fixed_positions_may_go_on_as_learned_ones():
    old = Vit(**SIZE, position="sincos")
    model, other, notes = moved(old, old.model_copy(update={"position": "learned"}))
    torch.testing.assert_close(other(pictures(16)), model(pictures(16)), rtol=0, atol=1e-6)
    assert notes == ["positions begin at the sines and cosines that they were"]


@torch.no_grad()
def test_grey_and_coloured_kernels_say_the_same_of_grey_images():
    for old, new in ((3, 1), (1, 3)):
        model, other, notes = moved(Vit(**SIZE, channels=old), Vit(**SIZE, channels=new))
        grey = pictures(16, 1)
        ours, theirs = (one(grey.expand(-1, channels, -1, -1)) for one, channels in ((model, old), (other, new)))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
        assert "channel" in notes[0]


@torch.no_grad()
def test_larger_patches_see_larger_images_alike():
    """Where patches grow, the new kernel's products with enlarged patches equal the old one's exactly (FlexiViT)."""
    old = Vit(**SIZE)
    model, other, notes = moved(old, old.model_copy(update={"patch": 8, "image": 32}))
    small = pictures(16)
    tiles = small.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 1, 4, 4)
    large = torch.nn.functional.interpolate(tiles, size=(8, 8), mode="bilinear", antialias=True)
    large = large.reshape(3, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(3, 3, 32, 32)
    torch.testing.assert_close(other(large), model(small), rtol=0, atol=1e-4)
    assert notes == ["the patch kernel is resampled from 4 to 8 pixels"]


def test_heads_of_other_classes_begin_anew_and_it_is_said():
    for old in (Vit(**SIZE), ConvNext(family="convnext", widths=(8, 16), depths=(1, 1), image=16, classes=5)):
        model, other = shaken(old), build_model(old.model_copy(update={"classes": 7}))
        weights, notes = adapted(dict(model.named_parameters()), other, old)
        assert not any("head" in name and "norm" not in name for name in weights)
        assert notes[0] == "the head was of 5 classes; this one of 7 classes begins at initial values"
        absent = [name for name, _ in other.named_parameters() if name not in weights]
        assert notes[1] == f"these begin at initial values: {', '.join(absent)}"


@torch.no_grad()
def test_a_class_token_goes_on_as_a_register_where_the_mean_is_pooled():
    """As MAE is fine-tuned: the blocks see the same tokens."""
    old = Vit(**SIZE, position="sincos")
    model, other, notes = moved(old, old.model_copy(update={"pool": "mean", "pool_norm": True, "registers": 1}))
    theirs, ours = (one.forward_features(pictures(16), names=["blocks.1"])["blocks.1"] for one in (model, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert notes[:2] == ["the class token goes on as a register", "the last norm comes after the pooling now, and begins anew"]


@torch.no_grad()
def test_swins_windows_are_interpolated():
    old = Swin(family="swin", width=8, depths=(2, 2), heads=(2, 4), window=2, patch=2, image=16, classes=5)
    model, other, notes = moved(old, old.model_copy(update={"window": 4, "image": 32}))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    small, large = (one.get_parameter(name).T.unflatten(1, (side, side)) for one, side in ((model, 3), (other, 7)))
    torch.testing.assert_close(large[:, 3, 3], small[:, 1, 1])          # no offset is no offset
    assert notes == ["relative positions interpolated from 2 x 2 to 4 x 4"]


def test_what_fits_no_way_is_left_for_others_to_refuse():
    old = Vit(**SIZE)
    weights, _ = adapted(dict(shaken(old).named_parameters()), build_model(Vit(**{**SIZE, "width": 32})), old)
    assert weights["cls_token"].shape == (1, 1, 16)
    assert weights["pos_embed"].shape == (1, 17, 16)


@pytest.mark.parametrize(("section", "depths"), [
    (Deit(family="deit", **SIZE), {"pos_embed": 0, "dist_token": 0, "patch_embed.proj.weight": 0, "blocks.1.mlp.fc1.bias": 2,
                                   "norm.weight": 3, "head.weight": 3, "head_dist.bias": 3}),
    (Swin(family="swin", width=8, depths=(2, 1), heads=(2, 4), window=2, patch=2, image=16, classes=5),
     {"patch_embed.norm.weight": 0, "layers.0.blocks.1.attn.qkv.weight": 2, "layers.1.downsample.norm.weight": 3,
      "layers.1.blocks.0.norm1.weight": 3, "norm.bias": 4, "head.fc.weight": 4}),
    (ConvNext(family="convnext", widths=(8, 16), depths=(1, 2), image=16, classes=5),
     {"stem.0.weight": 0, "stages.0.blocks.0.gamma": 1, "stages.1.downsample.1.weight": 2, "stages.1.blocks.1.norm.weight": 3,
      "head.norm.weight": 4, "head.fc.bias": 4}),
])
def test_how_deep_each_parameter_lies(section, depths):
    model = build_model(section)
    units = unit_names(model)
    assert {name: depth_of(name, units) for name in depths} == depths
    assert {depth_of(name, units) for name, _ in model.named_parameters()} == set(range(len(units) + 2))
