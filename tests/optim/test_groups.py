"""Each trainable parameter in exactly one group; the optimizer that is built from them."""

import pytest
import torch
from torch import nn

from vitscale.optim.build import OPTIMIZERS, build_optimizer
from vitscale.optim.groups import decay_groups
from vitscale.recipe import Optim


class Toy(nn.Module):
    width_scale = 1.0

    def __init__(self, exempt=("norm.weight", "norm.bias", "linear.bias", "token")):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self._exempt = set(exempt)

    def no_decay(self):
        return self._exempt


def names_of(model, group):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_groups_hold_each_trainable_parameter_once():
    model = Toy()
    decayed, spared = decay_groups(model, 0.3)
    assert names_of(model, decayed) == ["linear.weight"]
    assert names_of(model, spared) == ["token", "linear.bias", "norm.weight", "norm.bias"]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)


def test_an_empty_group_is_left_out():
    assert len(decay_groups(Toy(exempt=()), 0.3)) == 1


def test_an_exemption_that_names_nothing_is_our_own_mistake():
    with pytest.raises(AssertionError, match=r"norm2\.weight"):
        decay_groups(Toy(exempt=["norm2.weight"]), 0.3)


def test_adamw_decays_what_it_should_and_nothing_else():
    model = Toy()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, Optim(lr=0.1, weight_decay=0.5, betas=(0.8, 0.95), eps=1e-6))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if name == "linear.weight" else before[name]
        torch.testing.assert_close(parameter.detach(), expected.detach())
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.1, (0.8, 0.95), 1e-6, True)


def test_every_optimizer_a_recipe_can_name_is_registered():
    assert set(Optim.model_fields["name"].annotation.__args__) == set(OPTIMIZERS)
