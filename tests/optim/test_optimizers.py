"""LAMB and Lion against their papers' algorithms written out, and where they come down to something simpler."""

import pytest
import torch

from vitscale.models import build_model, initialise
from vitscale.optim.build import OPTIMIZERS, build_optimizer
from vitscale.optim.lamb import Lamb
from vitscale.optim.lion import Lion
from vitscale.recipe import Optim, Vit

STEPS = 5


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def after_steps(optimizer, parameter):
    for step in range(STEPS):
        parameter.grad = draw(step, *parameter.shape)
        optimizer.step()
    return parameter.detach()


def test_lamb_is_algorithm_2_of_its_paper():
    lr, b1, b2, eps, decay = 0.05, 0.9, 0.99, 1e-6, 0.2
    x, m, v = draw(99, 4, 3), torch.zeros(4, 3), torch.zeros(4, 3)
    parameter = torch.nn.Parameter(x.clone())
    for step in range(STEPS):
        g = draw(step, 4, 3)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        update = (m / (1 - b1 ** (step + 1))) / ((v / (1 - b2 ** (step + 1))).sqrt() + eps) + decay * x
        x = x - lr * x.norm() / update.norm() * update
    torch.testing.assert_close(after_steps(Lamb([parameter], lr, (b1, b2), eps, decay), parameter), x)


def test_lamb_without_decay_is_adam():
    ours, theirs = torch.nn.Parameter(draw(99, 7)), torch.nn.Parameter(draw(99, 7))
    found = after_steps(Lamb([ours], 0.05, (0.9, 0.99), 1e-6), ours)
    torch.testing.assert_close(found, after_steps(torch.optim.Adam([theirs], 0.05, (0.9, 0.99), 1e-6), theirs))


def test_lamb_moves_a_tensor_of_zeros():
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    assert after_steps(Lamb([parameter], 0.05, (0.9, 0.99), 1e-6, 0.2), parameter).abs().min() > 0


def test_lion_is_program_1_of_its_paper():
    lr, b1, b2, decay = 0.01, 0.9, 0.99, 0.3
    x, m = draw(99, 4, 3), torch.zeros(4, 3)
    parameter = torch.nn.Parameter(x.clone())
    for step in range(STEPS):
        g = draw(step, 4, 3)
        x = x - lr * ((b1 * m + (1 - b1) * g).sign() + decay * x)
        m = b2 * m + (1 - b2) * g
    torch.testing.assert_close(after_steps(Lion([parameter], lr, (b1, b2), decay), parameter), x)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_lowers_a_loss_and_leaves_what_is_exempt_undecayed(name):
    model = build_model(Vit(width=16, depth=2, heads=2, mlp=24, patch=4, image=8, classes=7))
    initialise(model, 0)
    optimizer = build_optimizer(model, Optim(name=name, lr={"lion": 1e-3, "sgd": 0.1}.get(name, 5e-3), weight_decay=0.1))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    images, labels, losses = draw(0, 14, 3, 8, 8), torch.arange(14) % 7, []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
