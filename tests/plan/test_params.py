"""Parameter counts: the published figures, and equality with the built model for every option."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import build_model
from vitscale.plan import anatomy_of, count_params, forward_flops, params_by_component
from vitscale.recipe import Vit

PUBLISHED = [
    ("tiny", 16, 5_717_416), ("small", 16, 22_050_664), ("base", 16, 86_567_656), ("base", 32, 88_224_232), ("large", 16, 304_326_632),
    ("huge", 14, 632_045_800), ("giant", 14, 1_012_611_432), ("gigantic", 14, 1_844_440_680),
]


def built(model: Vit) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(model)


@pytest.mark.parametrize(("size", "patch", "expected"), PUBLISHED)
def test_every_size_has_exactly_its_published_count(size, patch, expected):
    model = Vit(size=size, patch=patch)
    assert count_params(model) == expected
    assert sum(p.numel() for p in built(model).parameters()) == expected


OPTIONS = list(itertools.product(("token", "mean", "attention"), ("learned", "sincos"), (True, False), (None, 1e-5), (0, 7), (1, 3)))


@pytest.mark.parametrize(("pool", "position", "qkv_bias", "layer_scale", "classes", "channels"), OPTIONS)
def test_every_option_counts_as_built_component_by_component(pool, position, qkv_bias, layer_scale, classes, channels):
    model = Vit(width=24, depth=3, heads=2, mlp=40, patch=4, image=20, pool=pool, position=position, qkv_bias=qkv_bias,
                  layer_scale=layer_scale, classes=classes, channels=channels)
    counted = dict.fromkeys(params_by_component(model), 0)
    for name, parameter in built(model).named_parameters():
        counted[component(name)] += parameter.numel()
    assert params_by_component(model) == counted


@pytest.mark.parametrize(("size", "patch", "expected"), [("large", 16, 304_374_760), ("huge", 14, 632_126_440)])
def test_deit3_has_its_published_count(size, patch, expected):
    """Touvron et al. 2022: LayerScale, and no position of the class token."""
    model = Vit(size=size, patch=patch, layer_scale=1e-4, class_position=False)
    assert count_params(model) == sum(p.numel() for p in built(model).parameters()) == expected


MORE = [
    {"class_position": False, "class_tokens": 2},
    {"class_tokens": 3, "registers": 2}, {"pool": "mean", "registers": 4, "pool_norm": True}, {"pool": "attention", "registers": 1},
    {"pool": "attention", "pool_norm": True}, {"class_tokens": 2, "pool_norm": True, "head_hidden": 11}, {"gated": True},
    {"parallel": True}, {"qk_norm": True},
    {"position": "rotary"}, {"position": "none", "pool": "mean"}, {"position": "relative"}, {"position": "relative", "pool": "mean"},
    {"position": "relative", "registers": 2, "gated": True, "qk_norm": True, "layer_scale": 0.1},
    {"attention": "local", "window": 5, "halo": 1, "registers": 2}, {"attention": "local", "window": 1, "halo": 0, "pool": "mean"},
    {"attention": "axial", "heads": 3}, {"attention": "axial", "pool": "mean"}, {"attention": "sparse", "sparse_block": 3, "registers": 1},
    {"attention": "sparse", "sparse_block": 4, "sparse_random": 0, "qk_norm": True}, {"attention": "linear", "registers": 3},
]


@pytest.mark.parametrize("options", MORE, ids=str)
def test_further_options_count_as_built_and_as_torch_counts(options):
    model = Vit(**{"width": 24, "depth": 3, "heads": 2, "mlp": 40, "patch": 4, "image": 20, **options})
    counted = dict.fromkeys(params_by_component(model), 0)
    for name, parameter in built(model).named_parameters():
        counted[component(name)] += parameter.numel()
    assert params_by_component(model) == counted
    assert [unit.params for unit in anatomy_of(model).units] == [sum(p.numel() for p in unit.parameters()) for unit in built(model).units()]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(model)(torch.empty(2, 3, 20, 20))
    assert counter.get_total_flops() == 2 * forward_flops(model)


def component(name: str) -> str:
    """Which component of the plan a parameter belongs to."""
    top = {
        "patch_embed": "patch_embed", "pos_embed": "position", "cls_token": "prefix_tokens", "reg_token": "prefix_tokens",
        "norm": "norms", "fc_norm": "norms", "attn_pool": "pool", "head": "head", "pre_logits": "head",
    }
    parts = name.split(".")
    if parts[0] != "blocks":
        return top[parts[0]]
    return {"attn": "attention", "mlp": "mlp", "norm1": "norms", "norm2": "norms", "ls1": "layer_scale", "ls2": "layer_scale"}[parts[2]]
