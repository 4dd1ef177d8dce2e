"""Attention: its map, and what it does not depend on."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models.attention import Attention


def attention(**options) -> tuple[Attention, torch.Tensor]:
    torch.manual_seed(0)
    return Attention(24, 3, **options).eval(), torch.randn(2, 7, 24)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_map_reproduces_the_fused_output_and_its_rows_sum_to_one(qkv_bias):
    layer, tokens = attention(qkv_bias=qkv_bias)
    out, weights = layer(tokens, return_map=True)
    assert weights.shape == (2, 3, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))
    torch.testing.assert_close(layer(tokens), out, rtol=1e-5, atol=1e-6)
    value = layer.qkv(tokens)[..., 48:].reshape(2, 7, 3, 8).transpose(1, 2)
    torch.testing.assert_close(layer.proj((weights @ value).transpose(1, 2).reshape(2, 7, 24)), out)


def test_without_the_map_attention_is_fused(monkeypatch):
    layer, tokens = attention()
    called = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *args, **more: called.append(1) or real(*args, **more))
    with FlopCounterMode(display=False) as counter:
        layer(tokens)
    assert called == [1]
    assert counter.get_total_flops() == 2 * 2 * 7 * 24 * 96     # the linear layers; the counter does not know the CPU's fused kernel


def test_tokens_have_no_order():
    layer, tokens = attention()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(layer(tokens[:, order]), layer(tokens)[:, order], rtol=1e-5, atol=1e-6)
