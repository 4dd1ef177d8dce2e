"""The coordinate check passes under muP and fails without it; what muP changes, and that nothing changes without it."""

import math

import pytest
import torch

from vitscale.errors import RecipeError
from vitscale.models import build_model, initialise
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Engine
from vitscale.recipe import Recipe, load_recipe
from vitscale.train.coordinates import LIMIT, coordinate_check

MUP = ("model.mup_base_width=16", "model.mup_base_head_width=8")


def of_width(width: int, *overrides: str, heads: int | None = None) -> Recipe:
    return load_recipe(
        "quickstart",
        [
            f"model.width={width}",
            f"model.heads={heads or width // 8}",
            f"model.mlp={4 * width}",
            "model.depth=2",
            "optim.lr=3e-3",
            *overrides,
        ],
    )


def test_under_mup_coordinates_move_alike_at_every_width() -> None:
    told = coordinate_check([of_width(width, *MUP) for width in (16, 32, 64, 128)], seeds=2)
    assert told["passed"], told["verdict"]
    assert set(told["slopes"]) == {"blocks.0", "blocks.1", "logits"}
    assert all(abs(slope) < LIMIT for slope in told["slopes"].values())


def test_without_it_they_do_not() -> None:
    told = coordinate_check([of_width(width) for width in (16, 32, 64, 128)], seeds=2)
    assert not told["passed"]
    assert max(told["slopes"].values()) > 2 * LIMIT
    assert "outside" in told["verdict"]


def test_what_mup_changes() -> None:
    """Yang et al. 2022, table 3, for Adam: the rate of matrices goes with 1 / width; vectors, patches and positions keep theirs."""
    recipe = of_width(64, *MUP, heads=2)  # heads four times as wide as the base's
    model = build_model(recipe.model)
    initialise(model, 0)
    assert model.blocks[0].attn.scale == pytest.approx(math.sqrt(8) / 32)
    assert float(model.pos_embed.detach().std()) == pytest.approx(1 / 4, rel=0.15)  # 1 / sqrt(16)
    optimizer = build_optimizer(model, recipe.optim)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["lr"] * group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(rate) == len(names)
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "head.weight"):
        assert rate[id(names[name])] == pytest.approx(3e-3 / 4)
        assert decay[id(names[name])] == pytest.approx(3e-3 * 0.05)  # what decays in a step is the same at every width
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.norm1.weight", "head.bias"):
        assert rate[id(names[name])] == pytest.approx(3e-3)


def test_a_schedule_keeps_the_shares() -> None:
    model = build_model(of_width(64, *MUP).model)
    initialise(model, 0)

    class Holder:
        optimizer = build_optimizer(model, of_width(64, *MUP).optim)

    Engine.set_lr(Holder, 1e-3)
    assert {group["lr"] for group in Holder.optimizer.param_groups} == {1e-3, 1e-3 / 4}


def test_at_the_base_width_nothing_differs() -> None:
    plain, based = (build_model(of_width(16, *overrides).model) for overrides in ((), MUP))
    for model in (plain, based):
        initialise(model, 0)
    images = torch.randn(2, 1, 8, 8)
    for (name, one), (_, other) in zip(plain.named_parameters(), based.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.allclose(plain(images), based(images))
    assert len(build_optimizer(based, of_width(16, *MUP).optim).param_groups) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.mup_base_width=16", "model.attention=linear"), "attention full"),
        (("model.mup_base_head_width=8",), "belongs to model.mup_base_width"),
        (("model.mup_base_width=16", "optim.name=lamb"), "adamw and lion, not of lamb"),
        (("model.mup_base_width=16", "objective.name=mae"), "mae has a decoder of its own"),
    ],
)
def test_where_mup_is_not_worked_out_it_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        of_width(32, *overrides)
