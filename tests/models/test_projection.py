"""Heads of self-supervised objectives."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from vitscale.models.projection import PrototypeHead


def reference(head: PrototypeHead) -> nn.Sequential:
    """DINO's head as torch's own parts make it: the last layer's weight normed, its gain 1."""
    layers = [nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64) for layer in head.mlp.layers]
    for layer, own in zip(layers, head.mlp.layers, strict=True):
        layer.load_state_dict(own.state_dict())
    last = nn.Linear(head.last_layer.weight.shape[1], head.last_layer.weight.shape[0], bias=False, dtype=torch.float64)
    last.weight.data.copy_(head.last_layer.weight.data)
    last = weight_norm(last)
    last.parametrizations.weight.original0.data.fill_(1.0)

    class Normed(nn.Module):
        def forward(self, x):
            return x / x.norm(dim=-1, keepdim=True)

    between = [part for layer in layers for part in (layer, nn.GELU())][:-1]
    return nn.Sequential(*between, Normed(), last)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_head_is_the_published_one_and_its_gradient_too(layers):
    generator = torch.Generator().manual_seed(0)
    head = PrototypeHead(6, 10, 4, 9, layers).double()
    for parameter in head.parameters():
        parameter.data.normal_(generator=generator)
    features, weights = torch.randn(2, 5, 6, generator=generator).double(), torch.randn(2, 5, 9, generator=generator).double()
    logits = head(features)
    assert logits.shape == (2, 5, 9)
    assert logits.abs().max() <= 1 + 1e-12
    same = reference(head)
    torch.testing.assert_close(logits, same(features))
    (logits * weights).sum().backward()
    (same(features) * weights).sum().backward()
    torch.testing.assert_close(head.last_layer.weight.grad, same[-1].parametrizations.weight.original1.grad)
    torch.testing.assert_close(head.mlp.layers[0].weight.grad, same[0].weight.grad)
