"""SIGReg and the invariance of views against float64 written from the paper; its gradient, sample by sample, however they are split."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from vitscale.objectives.sigreg import directions, invariance_losses, pull, pulled, shared_pull, statistic, waves


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def epps_pulley_of_the_paper(z, along):
    """Listing 1: n times the integral of |ecf(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over -3..3 at 33 points, mean over directions."""
    t = np.linspace(-3, 3, 33)
    ecf = np.exp(1j * (z @ along)[:, :, None] * t).mean(axis=0)
    error = np.abs(ecf - np.exp(-t**2 / 2)) ** 2 * np.exp(-t**2 / 2)
    return np.trapezoid(error, t, axis=1).mean() * len(z)


def test_the_statistic_is_that_of_the_paper():
    z, along = numbers(50, 4), directions(numbers(4, 7, seed=1))
    assert along.norm(dim=0).tolist() == pytest.approx([1.0] * 7)
    found = statistic(waves(z, along).sum(dim=0), len(z)).item()
    assert found == pytest.approx(epps_pulley_of_the_paper(z.double().numpy(), along.double().numpy()), rel=1e-4)


def test_it_is_small_for_an_isotropic_gaussian_alone():
    z, along = numbers(2000, 4), directions(numbers(4, 64, seed=1))
    values = {name: statistic(waves(x, along).sum(dim=0), len(z)).item() for name, x in {
        "gaussian": z, "collapsed": torch.zeros_like(z), "narrow": z * 0.3, "one axis": z * torch.tensor([2.0, 0, 0, 0]), "moved": z + 1,
        "signs": z.sign() * torch.tensor([1, 1, 0, 0]) * math.sqrt(2)}.items()}
    gaussian = values.pop("gaussian")
    assert all(value > 10 * gaussian for value in values.values()), (gaussian, values)


@pytest.mark.parametrize("split", [(10,), (5, 5), (1, 9), (3, 0, 7)])
def test_each_sample_s_own_gradient_adds_up_to_the_whole_batch_s(split):
    """Sums of cos and sin of any parts, then each part by itself: the same gradients as autograd's through all samples at once."""
    z, along = numbers(10, 4).requires_grad_(), directions(numbers(4, 7, seed=1))
    statistic(waves(z, along).sum(dim=0), 10).backward()
    parts = z.detach().split(split)
    value, slope = pull(sum(waves(part, along).double().sum(dim=0) for part in parts), 10)
    assert value.item() == pytest.approx(epps_pulley_of_the_paper(z.detach().double().numpy(), along.double().numpy()), rel=1e-4)
    gradients = []
    for part in parts:
        leaf = part.clone().requires_grad_()
        losses = pulled(leaf, along, slope)
        assert losses.shape == (len(part),)
        losses.sum().backward()
        gradients.append(leaf.grad)
    assert torch.cat(gradients).numpy() == pytest.approx(z.grad.numpy(), rel=1e-4, abs=1e-6)


def test_a_shift_of_all_embeddings_is_pulled_as_autograd_says():
    z, along = numbers(3, 10, 4), directions(numbers(4, 7, seed=1))
    shift = torch.zeros(4, requires_grad=True)
    statistic(waves(z + shift, along).sum(dim=1), 10).sum().backward()
    sums = waves(z, along).double().sum(dim=1)
    assert shared_pull(sums, pull(sums, 10)[1], along).tolist() == pytest.approx(shift.grad.tolist(), rel=1e-4)


def test_views_are_to_agree_with_the_mean_of_the_global_ones():
    z = numbers(5, 3, 4)
    x = z.double().numpy()
    expected = ((x - x[:2].mean(axis=0)) ** 2).mean(axis=(0, 2))
    assert invariance_losses(z, 2).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert invariance_losses(z[:1].expand(4, -1, -1), 2).abs().max() == 0


def test_gradients():
    z, along = numbers(3, 4, 3, dtype=torch.float64).requires_grad_(), directions(numbers(3, 2, seed=1, dtype=torch.float64))
    slope = numbers(2, 2, 17, seed=2, dtype=torch.float64)
    assert gradcheck(lambda x: statistic(waves(x, along).sum(dim=1), 4), z)
    assert gradcheck(lambda x: pulled(x[0], along, slope), z)
    assert gradcheck(lambda x: invariance_losses(x, 2), z)
