"""Every kind of attention and of patch embedding learns: the loss on real digits falls within ten steps."""

import pytest
import torch
from sklearn.datasets import load_digits

from vitscale.models import build_model, initialise
from vitscale.recipe import Vit

SECTION = {"width": 32, "depth": 2, "heads": 4, "mlp": 64, "patch": 4, "image": 16, "channels": 1, "classes": 10}
OPTIONS = [
    {}, {"attention": "local", "window": 2, "halo": 1}, {"attention": "axial"}, {"attention": "linear"},
    {"attention": "sparse", "sparse_block": 2, "sparse_random": 1}, {"position": "relative"}, {"patch_embed": "overlap"},
    {"patch_embed": "hybrid", "hybrid_width": 32}, {"patch_embed": "conv_stem"}, {"patch_embed": "positional", "position": "none"},
    {"patch_embed": "adaptive"},
]


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """256 digits of 8 x 8, doubled to 16 x 16."""
    images, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(images[:256] / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    return torch.nn.functional.interpolate(pictures, scale_factor=2, mode="bilinear"), torch.tensor(labels[:256])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ten_steps_lower_the_loss(options):
    model = build_model(Vit(**{**SECTION, **options}))
    initialise(model, 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    (images, labels), losses = digits(), []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(2.3026, abs=1e-3)
    assert losses[-1] < 2.1
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} has not learned"
