"""The Vision Transformer: intermediates, names, other image sizes, and what the rest of the program relies on."""

import ast
from pathlib import Path

import pytest
import torch

from vitscale import models
from vitscale.errors import RecipeError
from vitscale.models import build_model, initialise
from vitscale.models.vit import VisionTransformer
from vitscale.recipe import Vit

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image": 8, "classes": 3}


def model(seed: int = 0, **options) -> VisionTransformer:
    built = build_model(Vit(**{**SMALL, **options}))
    initialise(built, seed)
    with torch.no_grad():
        for parameter in built.parameters():        # no zeros or ones that would hide a part left out
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)) * 0.1)
    return built.eval()


def pictures(height: int = 8, width: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def test_the_registry_builds_every_family():
    assert type(build_model(Vit(**SMALL))) is VisionTransformer
    with pytest.raises(RecipeError, match=r"model\.heads"):
        build_model(Vit(**{**SMALL, "heads": 3}))


def test_parameter_names_are_timms():
    names = set(model(layer_scale=0.1).state_dict())
    blocks = {
        f"blocks.{index}.{name}" for index in (0, 1) for name in (
            "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "ls1.gamma",
            "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma",
        )
    }
    outside = {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "norm.weight", "norm.bias", "head.weight", "head.bias",
    }
    assert names == blocks | outside
    assert "pos_embed" not in model(position="sincos").state_dict()
    pool = {name for name in model(pool="attention").state_dict() if name.startswith("attn_pool.")}
    assert pool == {
        f"attn_pool.{name}" for name in (
            "latent", "q.weight", "q.bias", "kv.weight", "kv.bias", "proj.weight", "proj.bias", "norm.weight", "norm.bias",
            "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
        )
    }


@pytest.mark.parametrize("pool", ["token", "mean", "attention"])
def test_intermediates_are_the_steps_of_the_forward_pass(pool):
    net, images = model(pool=pool), pictures()
    found = net.forward_features(images, names=net.feature_names())
    assert list(found) == net.feature_names()
    tokens = 5 if pool == "token" else 4
    assert found["patch_embed"].shape == (2, 4, 16)
    assert found["embedded"].shape == found["blocks.1"].shape == found["norm"].shape == (2, tokens, 16)
    assert found["blocks.0.attention"].shape == (2, 2, tokens, tokens)
    torch.testing.assert_close(net.blocks[0](found["embedded"]), found["blocks.0"])
    torch.testing.assert_close(net.blocks[1](found["blocks.0"]), found["blocks.1"])
    torch.testing.assert_close(net.norm(found["blocks.1"]), found["norm"])
    torch.testing.assert_close(net.head(found["pooled"]), net(images))
    expected = {"token": found["norm"][:, 0], "mean": found["norm"].mean(1), "attention": None}[pool]
    if expected is not None:
        torch.testing.assert_close(found["pooled"], expected)


def test_only_what_was_asked_for_is_kept():
    net = model()
    assert list(net.forward_features(pictures())) == ["norm", "pooled"]
    assert list(net.forward_features(pictures(), names=["blocks.1"])) == ["blocks.1"]
    assert net.forward_features(pictures(), names=[]) == {}
    with pytest.raises(ValueError, match=r"no such intermediates: blocks\.2; there are patch_embed"):
        net.forward_features(pictures(), names=["blocks.2", "norm"])


def test_no_classes_give_pooled_features():
    net = model(classes=0, pool="mean")
    assert torch.equal(net(pictures()), net.forward_features(pictures())["pooled"])
    assert not any(name.startswith("head") for name in net.state_dict())


@pytest.mark.parametrize("position", ["learned", "sincos"])
@pytest.mark.parametrize("pool", ["token", "mean", "attention"])
def test_any_image_that_the_patch_divides_goes_through(position, pool):
    net = model(position=position, pool=pool)
    for height, width in ((8, 8), (16, 8), (4, 12)):
        logits = net(pictures(height, width))
        assert logits.shape == (2, 3)
        assert logits.isfinite().all()
    with pytest.raises(ValueError, match="10 x 8 pixels are not divisible by the patch 4"):
        net(pictures(10, 8))


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_positions_are_added_to_patches_and_matter(position):
    net = model(position=position)
    found = net.forward_features(pictures(), names=["patch_embed", "embedded"])
    added = found["embedded"][:, 1:] - found["patch_embed"]
    table = net.pos_embed[:, 1:] if position == "learned" else net.pos_embed
    torch.testing.assert_close(added, table.expand_as(added))
    first = found["embedded"][:, :1] - net.cls_token
    torch.testing.assert_close(first, (net.pos_embed[:, :1] if position == "learned" else torch.zeros(1, 1, 16)).expand_as(first))


def test_one_channel():
    assert model(channels=1)(pictures(channels=1)).shape == (2, 3)


def test_exempt_from_decay_is_all_that_is_no_matrix():
    for options in ({"layer_scale": 0.1}, {"pool": "attention"}):
        net = model(**options)
        matrices = {name for name, parameter in net.named_parameters() if name not in net.no_decay()}
        assert matrices == {
            name for name, parameter in net.named_parameters()
            if name.endswith("weight") and "norm" not in name
        }
    assert {"cls_token", "pos_embed"} <= model().no_decay()
    assert "attn_pool.latent" in model(pool="attention").no_decay()


def test_units_are_the_blocks_in_order():
    net = model(depth=3)
    assert [id(unit) for unit in net.units()] == [id(net.get_submodule(f"blocks.{index}")) for index in range(3)]


def test_dropout_acts_in_training_only():
    net = model(dropout=0.5)
    assert torch.equal(net(pictures()), net(pictures()))
    assert torch.equal(net(pictures()), model()(pictures()))
    net.train()
    assert not torch.equal(net(pictures()), net(pictures()))
    active = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Dropout) and module.p == 0.5]
    per_block = [f"blocks.{index}.{name}" for index in (0, 1) for name in ("attn.proj_drop", "mlp.drop")]
    assert active == ["pos_drop", *per_block]


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_a_bf16_model_computes_in_bf16_throughout(position):
    net = model(position=position)
    exact = net(pictures())
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16()      # as an engine does: buffers stay fp32
    found = net.forward_features(pictures(16, 8).bfloat16(), torch.ones(4, 2), names=net.feature_names())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    torch.testing.assert_close(net(pictures().bfloat16()).float(), exact, rtol=0.1, atol=0.1)


def test_autocast_keeps_the_residual_stream_in_bf16():
    net = model(layer_scale=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.forward_features(pictures(16, 8), torch.ones(4, 2), names=["embedded", "blocks.0", "blocks.1"])
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


def test_every_parameter_gets_a_gradient():
    for pool in ("token", "mean", "attention"):
        net = model(pool=pool, layer_scale=0.1)
        net(pictures(16, 8), torch.ones(4, 2)).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in net.parameters())


def test_models_import_no_distributed_engine():
    files = list(Path(models.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith(("torch.distributed", "deepspeed", "accelerate")) for name in found), file
