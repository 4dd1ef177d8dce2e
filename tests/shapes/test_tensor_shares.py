"""Sizes that ranks can share."""

import pytest

from vitscale.errors import RecipeError
from vitscale.plan.memory import estimate
from vitscale.recipe import Recipe
from vitscale.shapes.tensor import check_tensor


def recipe(tensor: int, **model: object) -> Recipe:
    return Recipe.model_validate({
        "name": "shares",
        "model": {"classes": 1000, **model}, "parallel": {"engine": "fsdp", "tensor": tensor}, "data": {"train": ["x.tar"], "label": "cls"},
        "global_batch": 64, "duration": "10 epochs", "optim": {"lr": 1e-3}})


def test_a_named_size_decides_how_many_can_share_it() -> None:
    for tensor in (1, 2, 4, 8, 16):
        check_tensor(recipe(tensor, size="huge"))
    with pytest.raises(RecipeError, match=r"parallel\.tensor: 3 ranks cannot share the 16 heads .* and the width 5120 .*: 1, 2, 4, 8, 16$"):
        check_tensor(recipe(3, size="huge"))
    with pytest.raises(RecipeError, match=r"2 ranks cannot share the 3 heads \(model\.heads\) evenly"):
        check_tensor(recipe(2, size="tiny"))
    with pytest.raises(RecipeError, match=r"4 ranks cannot share the width 770 \(model\.mlp\) evenly; these can: 1, 2$"):
        check_tensor(recipe(4, size="base", mlp=770))


def test_states_are_shared_by_all_ranks_and_what_is_gathered_by_those_of_a_group() -> None:
    alone, cut = (estimate(recipe(tensor, size="huge"), 16, 1) for tensor in (1, 4))
    assert cut.communication == pytest.approx(alone.communication / 4, rel=0.01)
    assert cut.optimizer == pytest.approx(alone.optimizer, rel=0.03)       # patches, positions and head lie on fewer ranks
    assert cut.optimizer > alone.optimizer
