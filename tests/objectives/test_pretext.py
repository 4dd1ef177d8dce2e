"""Rotation and jigsaw: what is done to an image is what is asked, and can be undone."""

import math

import pytest
import torch

from vitscale.models import initialise
from vitscale.objectives import Seen, build_task
from vitscale.objectives.pretext import laid, permutations
from vitscale.plan import count_params, forward_flops
from vitscale.recipe import Vit
from vitscale.recipe.objectives import Jigsaw, Rotation
from vitscale.recipe.schema import ConvNext, Swin

MODEL = Vit(width=16, depth=1, heads=2, mlp=24, patch=2, image=8, channels=1)
ROTATION, JIGSAW = Rotation(name="rotation"), Jigsaw(name="jigsaw")


def seen_with(draws: list[float], size: int = 8, channels: int = 1) -> Seen:
    images = torch.randn(len(draws), channels, size, size, generator=torch.Generator().manual_seed(1))
    return Seen(images, torch.zeros(len(draws), dtype=torch.int64), torch.tensor(draws)[:, None])


def test_each_image_is_turned_by_what_was_drawn():
    task, seen = build_task(MODEL, ROTATION), seen_with([0.0, 0.25, 0.5, 0.75, 0.9999, 0.2499, 1.0])
    (images,) = task.inputs(seen)
    for image, original, quarters in zip(images, seen.images, (0, 1, 2, 3, 3, 0, 3), strict=True):
        assert torch.equal(image, torch.rot90(original, quarters, (1, 2)))
    judged = task.measured(task.numbers.evaluation, torch.eye(4)[[0, 1, 2, 3, 3, 0, 2]] * 9, seen)
    assert judged["eval_top1"].tolist() == [True] * 6 + [False]
    losses = task.losses(torch.eye(4)[[0, 1, 2, 3, 3, 0, 2]] * 9, seen)
    assert (losses[:6] < 0.01).all()
    assert losses[6] > 8


@pytest.mark.parametrize(("grid", "count"), [(2, 24), (3, 40), (4, 20)])
def test_tiles_are_laid_as_drawn_and_the_inverse_puts_them_back(grid, count):
    model = MODEL.model_copy(update={"image": 24})
    task = build_task(model, Jigsaw(name="jigsaw", grid=grid, permutations=count))
    seen = seen_with([(number + 0.5) / count for number in range(count)], size=24)
    (images,) = task.inputs(seen)
    side = 24 // grid
    orders = task.permutations[torch.arange(count)]
    for image, original, order in zip(images, seen.images, orders.tolist(), strict=True):
        for place, tile in enumerate(order):
            top, left, from_top, from_left = (side * value for value in (*divmod(place, grid), *divmod(tile, grid)))
            assert torch.equal(image[:, top:top + side, left:left + side],
                               original[:, from_top:from_top + side, from_left:from_left + side])
    assert torch.equal(laid(images, orders.argsort(dim=1), grid), seen.images)
    assert task.measured(task.numbers.evaluation, torch.eye(count), seen)["eval_top1"].all()


def test_permutations_differ_much_and_are_the_same_everywhere():
    whole = permutations(4, 24)
    assert len({tuple(row) for row in whole.tolist()}) == 24
    assert whole[0].tolist() == [0, 1, 2, 3]
    first = permutations(4, 4)
    assert sorted((first[:, None] != first).sum(axis=2).flatten().tolist()) == [0] * 4 + [4] * 12       # no tile twice in one place
    found = permutations(9, 100)
    assert [sorted(row) for row in found.tolist()] == [list(range(9))] * 100
    assert len({tuple(row) for row in found.tolist()}) == 100
    assert (found == permutations(9, 100)).all()
    assert found[:12].tolist() == permutations(9, 12).tolist()
    apart = (found[:, None] != found).sum(axis=2).sum() / (100 * 99)
    assert apart > 8.05         # drawn at random: 8


@pytest.mark.parametrize(("objective", "classes"), [(ROTATION, 4), (JIGSAW, 24)], ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("model", [
    MODEL.model_copy(update={"classes": 0}), Swin(family="swin", width=8, depths=(1, 1), heads=(1, 2), window=2, patch=2, image=8),
    ConvNext(family="convnext", widths=(8, 16), depths=(1, 1), image=16),
], ids=lambda model: model.family)
def test_any_backbone_is_given_as_many_classes_as_there_are_changes(objective, classes, model):
    """Whatever model.classes is; and before training it knows no better than chance."""
    task = build_task(model, objective)
    learner = task.build()
    initialise(learner, 0)
    seen = seen_with([0.1, 0.4, 0.6, 0.9], size=model.image, channels=model.channels)
    output = learner(*task.inputs(seen))
    assert output.shape == (4, classes)
    assert task.losses(output, seen).tolist() == pytest.approx([math.log(classes)] * 4)
    assert count_params(model, objective) == sum(p.numel() for p in learner.parameters())
    assert forward_flops(model, objective) == forward_flops(model.model_copy(update={"classes": classes}))


def test_changes_are_equally_likely():
    task = build_task(MODEL, ROTATION)
    seen = seen_with([(number + 0.5) / 400 for number in range(400)])
    assert torch.bincount(task.change(seen)).tolist() == [100] * 4
