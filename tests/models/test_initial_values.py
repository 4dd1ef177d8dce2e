"""Initial values: a function of seed and name alone, with the stated distributions, on any way of building."""

import math

import pytest
import torch

from vitscale.models import build_model, initial_value, initialise
from vitscale.recipe import Vit

FULL = Vit(width=32, depth=2, heads=2, mlp=64, patch=4, image=16, classes=11, pool="attention", layer_scale=1e-4)


@pytest.mark.parametrize("options", [
    {"pool": "token"}, {"pool": "token", "position": "sincos"}, {"pool": "mean", "position": "sincos"},
    {"pool": "attention", "layer_scale": 0.1},
])
def test_meta_then_empty_then_initialise_equals_building_directly(options):
    section = Vit(width=16, depth=2, heads=2, mlp=24, patch=4, image=8, classes=3, **options)
    direct = build_model(section)
    initialise(direct, seed=7)
    with torch.device("meta"):
        late = build_model(section)
    assert all(tensor.is_meta for tensor in (*late.parameters(), *late.buffers()))
    late.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*late.parameters(), *late.buffers()):
            tensor.fill_(float("nan"))
    initialise(late, seed=7)
    ours, theirs = (dict([*built.named_parameters(), *built.named_buffers()]) for built in (late, direct))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(late(images), direct(images))


def test_values_depend_on_seed_and_name_and_nothing_else():
    model = build_model(FULL)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    forward = {name: initial_value(model, name, shape, 5) for name, shape in shapes.items()}
    torch.manual_seed(123)
    backward = {name: initial_value(model, name, shape, 5) for name, shape in reversed(shapes.items())}
    assert all(torch.equal(forward[name], backward[name]) for name in shapes)
    deeper = build_model(FULL.model_copy(update={"depth": 5}))
    name = "blocks.1.mlp.fc1.weight"
    assert torch.equal(initial_value(deeper, name, shapes[name], 5), forward[name])
    assert not torch.equal(initial_value(model, name, shapes[name], 6), forward[name])
    assert not torch.equal(forward["blocks.0.mlp.fc1.weight"], forward[name])


def test_every_parameter_has_its_stated_distribution():
    model = build_model(FULL.model_copy(update={"width": 128, "mlp": 256, "patch": 8}))
    initialise(model, 0)
    for name, parameter in model.named_parameters():
        mean, std = parameter.mean().item(), parameter.std().item()
        if name.endswith("bias") or name.startswith("head.") or name == "cls_token":
            assert parameter.abs().max() == 0, name
        elif name.endswith("gamma"):
            assert (parameter == 1e-4).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            width = 128
            named = {"patch_embed.proj.weight": (3 * 64) ** -0.5, "attn_pool.latent": width**-0.5, "pos_embed": width**-0.5}
            parts = 3 if name.endswith("qkv.weight") else 2 if name.endswith(".kv.weight") else 1
            expected = named.get(name) or math.sqrt(2 / (parameter.shape[1] + parameter.shape[0] / parts))      # Glorot's, matrix by matrix
            error = 5 / math.sqrt(2 * parameter.numel())
            assert std == pytest.approx(expected, rel=error), name
            assert abs(mean) < 5 * expected / math.sqrt(parameter.numel()), name


def test_values_are_made_on_the_cpu_whatever_the_default_device():
    model = build_model(FULL)
    with torch.device("meta"):
        for name in ("norm.weight", "norm.bias", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"):
            value = initial_value(model, name, (4,) if "norm" in name or "gamma" in name else (4, 4), 0)
            assert value.device.type == "cpu"
            assert value.dtype == torch.float32


def test_the_first_loss_is_that_of_a_guess():
    model = build_model(FULL)
    initialise(model, 0)
    assert model(torch.randn(2, 3, 16, 16)).abs().max() == 0
