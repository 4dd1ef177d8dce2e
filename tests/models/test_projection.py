"""Heads of self-supervised objectives."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from vitscale.models import initialise
from vitscale.models.multi_crop import MaskedCrops
from vitscale.models.projection import PrototypeHead
from vitscale.recipe import Vit
from vitscale.recipe.objectives import Ibot


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


@pytest.mark.parametrize(("width", "hidden", "bottleneck"), [(32, 64, 16), (96, 256, 64), (192, 512, 128), (384, 2048, 256)])
@pytest.mark.parametrize("own", [None, 24], ids=["one head", "two heads"])
def test_at_first_a_head_of_any_width_answers_by_the_image(width, hidden, bottleneck, own):
    """A step of Adam moves a bias by the learning rate whatever the width: beside answers of 0.01 a few steps make it all that is told."""
    model = Vit(width=width, depth=1, heads=1, mlp=width, patch=8, image=16)
    net = MaskedCrops(model, Ibot(name="ibot", prototypes=48, patch_prototypes=own, hidden=hidden, bottleneck=bottleneck))
    initialise(net, 0)
    features = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    for head in filter(None, (net.dino_head, net.ibot_head)):
        with torch.no_grad():
            assert 0.1 < head.mlp(features).std(dim=0).mean() < 2
        prototypes = head.last_layer.weight.detach()
        assert prototypes.abs().max() <= bottleneck**-0.5           # as nn.Linear, at which the paper's code leaves them
        assert prototypes.std().item() == pytest.approx((3 * bottleneck)**-0.5, rel=0.1)
