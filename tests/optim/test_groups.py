"""Each trainable parameter in exactly one group; the optimizer that is built from them."""

import pytest
import torch
from torch import nn

from vitscale.errors import RecipeError
from vitscale.models import build_model
from vitscale.objectives import build_task
from vitscale.optim.build import OPTIMIZERS, build_optimizer
from vitscale.optim.groups import decay_groups, freeze_
from vitscale.recipe import Optim
from vitscale.recipe.objectives import Dinov2
from vitscale.recipe.schema import Swin, Vit


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


SWIN = Swin(family="swin", width=8, depths=(2, 1), heads=(2, 4), window=2, patch=2, image=16, classes=5)
VIT = Vit(width=16, depth=3, heads=2, mlp=24, patch=4, image=16, classes=5)


def test_layers_learn_more_slowly_the_further_they_lie_from_the_head():
    """BEiT's rule: the head at the whole rate, block i of L at decay ** (L - i), the patches at decay ** (L + 1)."""
    model = build_model(VIT)
    optimizer = build_optimizer(model, Optim(lr=1.0, layer_decay=0.5))
    scales = {name: group["lr_scale"] for group in optimizer.param_groups for name in names_of(model, group)}
    assert scales.keys() == {name for name, _ in model.named_parameters()}
    assert [scales[name] for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.2.norm1.bias",
                                      "norm.weight", "head.weight")] == [1 / 16, 1 / 16, 1 / 8, 1 / 2, 1, 1]
    assert all(group["weight_decay"] == (0 if names_of(model, group)[0] in model.no_decay() else 0.05) for group in optimizer.param_groups)


@pytest.mark.parametrize(("section", "what", "stays", "learns"), [
    (VIT, 1, ["patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.attn.qkv.weight"], ["blocks.1.norm1.weight", "norm.weight"]),
    (VIT, "backbone", ["blocks.2.mlp.fc2.bias", "norm.weight"], ["head.weight", "head.bias"]),
    (SWIN, 1, ["patch_embed.proj.weight", "layers.0.blocks.1.norm1.weight"], ["layers.1.downsample.norm.weight", "head.fc.weight"]),
])
def test_what_is_frozen_stays_and_stands_in_no_group(section, what, stays, learns):
    model = build_model(section)
    frozen = freeze_(model, what)
    assert frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad) > 0
    trained = {name for group in decay_groups(model, 0.1, 0.9) for name in names_of(model, group)}
    assert trained >= set(learns)
    assert not trained & set(stays)


def test_more_blocks_than_there_are_cannot_be_frozen():
    for section, words in ((VIT, "4 of the model's 3 blocks"), (SWIN, "4 of the model's 2 stages")):
        with pytest.raises(RecipeError, match=words):
            freeze_(build_model(section), 4)


def test_the_patch_embedding_may_learn_more_slowly_and_heads_of_pretraining_learn_at_the_rate():
    """DINOv2: 0.2 of the rate; blocks by their depth, whatever heads are units besides."""
    task = build_task(Vit(width=16, depth=2, heads=2, mlp=24, patch=2, image=8, classes=0),
                      Dinov2(name="dinov2", prototypes=8, patch_prototypes=6, hidden=8, bottleneck=4))
    model = task.build()
    for decay in (1.0, 0.5):
        rates = {name: group["lr_scale"] for group in decay_groups(model, 0.1, decay, 0.2) for name in names_of(model, group)}
        assert rates.keys() == dict(model.named_parameters()).keys()
        assert rates["patch_embed.proj.weight"] == pytest.approx(0.2 * decay**3)
        assert rates["cls_token"] == pytest.approx(decay**3)
        assert rates["blocks.0.mlp.fc1.weight"] == pytest.approx(decay**2)
        assert rates["blocks.1.mlp.fc1.weight"] == pytest.approx(decay)
        assert rates["dino_head.last_layer.weight"] == rates["ibot_head.mlp.layers.0.weight"] == 1.0
