"""Trained for real on images in which the object's place is known, maps point at the object."""

import pytest
import torch
import torch.nn.functional as F
from planted import DIGIT, SIZE, planted
from torch import Tensor

from vitscale.explain import METHODS, Look
from vitscale.models import Backbone, build_model, initialise
from vitscale.recipe.schema import ConvNext, Model, Swin, Vit

pytestmark = pytest.mark.slow       # trains small models: 2 to 8 s of a core each


def trained(section: Model, images: Tensor, labels: Tensor, steps: int) -> Backbone:
    model = build_model(section)
    initialise(model, 0)
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05), torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (48,), generator=generator)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def hits(heat: Tensor, boxes: Tensor, side: int, size: int) -> tuple[float, float]:
    """heat (B, down, across) of images of `size` pixels, boxes (B, 2) of squares of `side` -> how often the brightest place's centre lies
    in the square (the pointing game: Zhang et al. 2018, Top-down neural attention), and how often a place chosen blindly would."""
    centres = (torch.arange(heat.shape[1]) + 0.5) * size / heat.shape[1]
    down, across = ((centres >= boxes[:, axis, None]) & (centres < boxes[:, axis, None] + side) for axis in (0, 1))
    inside = (down[:, :, None] & across[:, None, :]).flatten(1)
    return inside.gather(1, heat.flatten(1).argmax(dim=1, keepdim=True)).float().mean().item(), inside.float().mean().item()


def test_a_vit_looks_at_the_digit_on_the_photo() -> None:
    """Held-out digits on photos: a quarter of the image is digit."""
    digits = (0, 1, 4)
    known = planted(2000, 0, digits=digits)
    section = Vit(width=48, depth=3, heads=4, mlp=96, patch=4, image=SIZE, classes=3)
    model = trained(section, known.images, known.labels, steps=150)
    new = planted(200, 1, training=False, digits=digits)
    look = Look(model, new.images)
    assert (look.predicted == new.labels).float().mean() > 0.7
    for method in ("rollout", "relevance", "gradient-rollout"):
        heat = METHODS[method].heat
        assert heat is not None
        pointed, blindly = hits(heat(look, new.labels), new.boxes, DIGIT, SIZE)
        assert blindly < 0.3
        assert pointed > 0.8, method


def squares(count: int, seed: int, size: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise and one square, red, green or blue: images, which colour it has, where its corner is."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    labels, boxes = torch.randint(3, (count,), generator=generator), torch.randint(size - side + 1, (count, 2), generator=generator)
    for image, label, (top, left) in zip(images, labels.tolist(), boxes.tolist(), strict=True):
        image[label, top:top + side, left:left + side] += 2
    return images, labels, boxes


@pytest.mark.parametrize("section", [
    Swin(family="swin", width=16, depths=(1,), heads=(2,), window=2, patch=4, image=48, classes=3),
    ConvNext(family="convnext", widths=(24,), depths=(1,), layer_scale=0.5, image=48, classes=3),
], ids=["swin", "convnext"])
def test_grad_cam_points_at_the_square_whose_colour_is_the_class(section: Model) -> None:
    """One block, so that what is found in a place was seen near it.  ConvNeXt tells the class with certainty: then only a gradient that
    its last norm does not take away points anywhere (blindly: 0.1)."""
    images, labels, _ = squares(500, 0, 48, 16)
    model = trained(section, images, labels, steps=60)
    images, labels, boxes = squares(200, 1, 48, 16)
    look = Look(model, images)
    assert (look.predicted == labels).float().mean() > 0.8
    heat = METHODS["grad-cam"].heat
    assert heat is not None
    pointed, blindly = hits(heat(look, labels), boxes, 16, 48)
    assert blindly < 0.15
    assert pointed > 0.6
