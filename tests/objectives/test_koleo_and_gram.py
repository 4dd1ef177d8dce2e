"""Features that keep away from each other, and patches that stay as alike as they were, against float64 written from the papers."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from vitscale.objectives.gram import gram_losses, shrunk
from vitscale.objectives.koleo import koleo_losses


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def koleo_of_the_paper(features, group):
    """- log min_j |x_i - x_j|, image by image (Sablayrolles et al. 2019, equation 3)."""
    x = features.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    found = []
    for i in range(len(x)):
        first = i // group * group
        found.append(-math.log(min(distance[i, j] for j in range(first, first + group) if j != i)))
    return found


@pytest.mark.parametrize("group", [2, 4, 12])
def test_koleo_is_that_of_the_paper_inside_groups(group):
    features = numbers(12, 5)
    losses = koleo_losses(features, torch.ones(12), group)
    assert losses.tolist() == pytest.approx(koleo_of_the_paper(features, group), rel=1e-5)
    parts = [koleo_losses(part, torch.ones(len(part)), group) for part in features.split(group)]      # groups never meet
    assert torch.equal(torch.cat(parts), losses)


def test_koleo_of_a_bad_sample_and_of_one_left_alone_is_zero():
    features, valid = numbers(8, 5), torch.tensor([1, 0, 1, 1, 0, 1, 0, 0.0])
    features[1] = features[0]                   # were it counted, it would be the nearest
    losses = koleo_losses(features.requires_grad_(), valid, 4)
    first, *others = koleo_of_the_paper(features[[0, 2, 3]].detach(), 3)
    assert losses[:4].tolist() == pytest.approx([first, 0.0, *others], rel=1e-5)
    assert losses[4:].tolist() == [0.0] * 4
    losses.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert not features.grad[[1, 4, 5, 6, 7]].any()


def test_koleo_of_equal_images_is_finite():
    features = torch.ones(4, 3, requires_grad=True)
    losses = koleo_losses(features, torch.ones(4), 4)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(features.grad).all()


def test_the_anchor_is_that_of_the_paper():
    """|| X_S X_S^T - X_G X_G^T ||_F^2 over N^2, rows of length 1; two students of different widths may be compared."""
    student, anchor = numbers(3, 6, 4), numbers(3, 6, 5, seed=1)
    x, y = (one.double().numpy() / np.linalg.norm(one.double().numpy(), axis=2, keepdims=True) for one in (student, anchor))
    expected = [((a @ a.T - b @ b.T) ** 2).sum() / 36 for a, b in zip(x, y, strict=True)]
    assert gram_losses(student, anchor).tolist() == pytest.approx(expected, rel=1e-5)
    turn = torch.linalg.qr(numbers(4, 4, seed=2))[0]
    assert gram_losses(student, 3 * student @ turn).abs().max() < 1e-12          # turned and stretched as a whole they are as alike


def test_a_finer_grid_is_shrunk_to_the_student_s():
    across = torch.arange(8.0).expand(8, 8).flatten()[None, :, None]
    found = shrunk(across, (8, 8), (4, 4)).reshape(4, 4)
    assert found[:, 1:3].tolist() == [pytest.approx([2.5, 4.5], abs=1e-5)] * 4        # a ramp stays one, patches lying where they lay
    assert shrunk(across, (8, 8), (8, 8)) is across


def test_gradients():
    features, anchor = numbers(6, 3, dtype=torch.float64).requires_grad_(), numbers(2, 3, 3, seed=1, dtype=torch.float64)
    assert gradcheck(lambda x: koleo_losses(x, torch.tensor([1, 1, 0, 1, 1, 1.0]), 3), features)
    assert gradcheck(lambda x: gram_losses(x.unflatten(0, (2, 3)), anchor), features)
