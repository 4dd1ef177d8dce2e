"""FLOPs: equal to torch's counter for every option, and ViT-H/14's known total."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import build_model
from vitscale.plan import flops_by_component, forward_flops, training_flops_per_image
from vitscale.recipe import Vit


def counted(model: Vit, batch: int) -> int:
    """FLOPs of a forward pass on meta tensors, where the counter sees attention as its two matrix products."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(model)(torch.empty(batch, model.channels, model.image, model.image))
    return counter.get_total_flops()


OPTIONS = list(itertools.product(("token", "mean", "attention"), ("learned", "sincos"), (True, False), (None, 0.1), (0, 7), (1, 3)))


@pytest.mark.parametrize(("pool", "position", "qkv_bias", "layer_scale", "classes", "channels"), OPTIONS)
def test_every_option_costs_what_the_counter_counts(pool, position, qkv_bias, layer_scale, classes, channels):
    model = Vit(width=24, depth=2, heads=2, mlp=40, patch=4, image=20, pool=pool, position=position, qkv_bias=qkv_bias,
                  layer_scale=layer_scale, classes=classes, channels=channels)
    assert 3 * forward_flops(model) == counted(model, batch=3)


def test_huge_is_334_point_6_gigaflop():
    model = Vit(size="huge", patch=14)
    assert forward_flops(model) == counted(model, batch=1) == 334_590_218_240
    assert training_flops_per_image(model) == 3 * 334_590_218_240


def test_components_stand_for_what_they_say():
    parts = flops_by_component(Vit(width=8, depth=2, heads=2, mlp=16, patch=4, image=8, classes=3, channels=1, pool="mean"))
    assert parts == {
        "patch_embed": 4 * 2 * 16 * 8,                  # four patches of 16 pixels to 8 channels
        "attention_linear": 2 * 4 * 2 * 8 * (24 + 8),   # two blocks, four tokens, qkv and projection
        "attention_product": 2 * 2 * 2 * 4 * 4 * 8,     # two blocks, two products of 4 x 4 x 8
        "mlp": 2 * 4 * 2 * (8 * 16 + 16 * 8),
        "pool": 0,
        "head": 2 * 8 * 3,
    }
