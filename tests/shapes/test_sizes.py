"""The size table, its overrides, and what cannot be built."""

import pytest

from vitscale.errors import RecipeError
from vitscale.recipe import Vit
from vitscale.shapes.vit import Shape, num_tokens, problems, shape_of


def test_a_size_is_its_published_row():
    assert shape_of(Vit(size="small")) == Shape(width=384, depth=12, heads=6, mlp=1536)
    assert shape_of(Vit(size="gigantic", patch=14)) == Shape(width=1664, depth=48, heads=16, mlp=8192)


def test_explicit_numbers_override_the_size_or_stand_in_for_it():
    assert shape_of(Vit(size="tiny", depth=3, mlp=100)) == Shape(192, 3, 3, 100)
    assert shape_of(Vit(width=24, depth=1, heads=2, mlp=7)) == Shape(24, 1, 2, 7)


@pytest.mark.parametrize(("model", "key", "words"), [
    (Vit(size="base", heads=7), "model.heads", "7 heads do not divide the width 768 of size base"),
    (Vit(size="base", width=100), "model.heads", "12 heads do not divide the width 100"),
    (Vit(width=6, depth=1, heads=2, mlp=8, position="sincos"), "model.width", "divisible by 4, got 6"),
    (Vit(width=6, depth=1), "model.size", "give a size (tiny, small"),
    (Vit(size="tiny", image=30, patch=16), "model.image", "30 is not divisible by model.patch 16"),
])
def test_what_cannot_be_built_is_named_by_its_key(model, key, words):
    [(found_key, sentence)] = problems(model)
    assert found_key == key
    assert words in sentence
    with pytest.raises(RecipeError, match=key):
        shape_of(model)


def test_all_problems_come_at_once():
    model = Vit(width=6, depth=1, heads=4, mlp=8, position="sincos", image=10, patch=4)
    assert [key for key, _ in problems(model)] == ["model.heads", "model.width", "model.image"]
    assert problems(Vit(size="huge", patch=14, position="sincos")) == []


@pytest.mark.parametrize(("pool", "tokens"), [("token", 257), ("mean", 256), ("attention", 256)])
def test_only_token_pooling_adds_a_token(pool, tokens):
    assert num_tokens(Vit(size="huge", patch=14, pool=pool)) == tokens
