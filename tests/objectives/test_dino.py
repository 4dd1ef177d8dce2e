"""DINO as a task: what the teacher sees, what comes of its answers, what a step's samples say together."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import initialise
from vitscale.objectives import Coupled, Seen, build_task
from vitscale.objectives.rows import Rows
from vitscale.plan import anatomy_of
from vitscale.recipe import Recipe
from vitscale.recipe.load import check_recipe
from vitscale.recipe.schedules import Now

VIEWS = [{"name": "a", "count": 1}, {"name": "b", "count": 1}, {"name": "c", "count": 3, "image": 8}]
NOW = Now(10, 100)


def recipe(**objective: Any) -> Recipe:
    return check_recipe({
        "name": "t", "model": {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "image": 16, "patch": 4, "classes": 0},
        "data": {"train": "x.tar", "label": None, "views": VIEWS}, "optim": {"lr": 1e-3}, "global_batch": 8, "duration": "10 steps",
        "objective": {"name": "dino", "prototypes": 20, "hidden": 12, "bottleneck": 8, **objective}}, "test")


def seen(count: int = 4) -> Seen:
    draw = torch.Generator().manual_seed(0)
    images, *more = (torch.randn(views * count, 3, size, size, generator=draw) for views, size in ((1, 16), (1, 16), (3, 8)))
    return Seen(images, torch.zeros(count, dtype=torch.int64), more=tuple(more))


def rows(values: dict[str, torch.Tensor], weight: torch.Tensor) -> Rows:
    return Rows(values, weight, torch.arange(len(weight)), len(weight), lambda one: one, lambda one: one)


class Spy:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.given = model, []

    @torch.no_grad()
    def teacher(self, *images: torch.Tensor) -> torch.Tensor:
        self.given.append(images)
        return self.model(images[0], None, *images[1:])


@pytest.mark.parametrize(("views", "sets"), [(2, (4, 4)), (1, (4,)), (3, (4, 4, 4))])
def test_the_teacher_sees_the_first_views_alone_and_gets_no_gradient(views: int, sets: tuple[int, ...]) -> None:
    task, micro = build_task(recipe().model, recipe(global_views=views).objective), seen()
    initialise(model := task.build(), 0)
    surveyed = task.survey(spy := Spy(model), micro)
    (given,) = spy.given
    assert tuple(map(len, given)) == sets
    for images, known in zip(given, micro.views, strict=False):
        assert torch.equal(images, known[:len(images)])
    assert surveyed["teacher"].shape == (4, views, 20)
    told, _ = task.couple(rows(surveyed, torch.ones(4)), task.new_state(), NOW)
    assert not any(value.requires_grad for value in told.values())
    losses = task.losses(model(*micro.views[:1], None, *micro.views[1:]), replace(micro, coupled=Coupled(NOW, told)))
    assert losses.shape == (4,)
    losses.sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters())


def test_the_loss_is_equation_3_of_the_paper() -> None:
    """In float64, written down from algorithm 1: centre, sharpen, cross-entropy over the pairs of different views."""
    task, draw = build_task(recipe().model, recipe().objective), torch.Generator().manual_seed(1)
    student, teacher = torch.randn(5, 4, 20, generator=draw), torch.randn(4, 2, 20, generator=draw)
    centre = torch.randn(20, generator=draw) / 5
    told, state = task.couple(rows({"teacher": teacher}, torch.tensor([1.0, 1, 0, 1])), {"centre": centre}, NOW)
    found = task.losses((student.flatten(0, 1), None), Seen(torch.zeros(4, 1), torch.zeros(4), coupled=Coupled(NOW, told)))
    total = torch.zeros(4, dtype=torch.float64)
    for t in range(2):
        answers = ((teacher[:, t].double() - centre.double()) / 0.04).softmax(-1)
        for s in range(5):
            if s != t:
                total -= (answers * (student[s].double() / 0.1).log_softmax(-1)).sum(-1) / 8
    torch.testing.assert_close(found.double(), total, rtol=1e-5, atol=1e-6)
    counted = teacher[[0, 1, 3]].double().flatten(0, 1).mean(0)         # the third could not be read
    torch.testing.assert_close(state["centre"].double(), 0.9 * centre.double() + 0.1 * counted, rtol=1e-6, atol=1e-7)


def test_information_falls_to_nothing_in_both_collapses() -> None:
    task = build_task(recipe().model, recipe(teacher_temp=0.1).objective)
    told = lambda teacher: float(task.couple(rows({"teacher": teacher}, torch.ones(40)), task.new_state(), NOW)[0]["mutual"][0])  # noqa: E731
    apart = 10 * torch.eye(20).repeat(2, 1)[:, None].expand(-1, 2, -1)
    assert told(apart) == pytest.approx(1.0, abs=1e-3)
    assert told(10 * torch.eye(20)[:1].expand(40, -1)[:, None].expand(-1, 2, -1)) == pytest.approx(0.0, abs=1e-3)
    assert told(torch.zeros(40, 2, 20)) == pytest.approx(0.0, abs=1e-3)


def test_prototypes_rest_as_long_as_they_are_told_to() -> None:
    task = build_task(recipe().model, recipe(rest_prototypes="3 steps").objective)
    assert [bool(task.resting(Now(images, 100, 50, 8))) for images in (8, 16, 24, 32)] == [True, True, True, False]
    (start,) = task.resting(Now(8, 100, 50, 8))
    assert [name for name, _ in task.build().named_parameters() if name.startswith(start)] == ["dino_head.last_layer.weight"]


def test_the_planner_counts_what_is_trained_and_what_is_looked_at() -> None:
    """On meta tensors, where the counter sees attention as its two matrix products."""
    section = recipe()
    task = build_task(section.model, section.objective)
    with torch.device("meta"):
        model = task.build()
    images, *more = (one.to("meta") for one in seen(1).views)
    micro = Seen(images, torch.zeros(1, dtype=torch.int64), more=tuple(more))
    parts = anatomy_of(section.model, section.objective, section.data.views)
    assert sum(parts.params.values()) == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(micro.images, None, *micro.more)
    assert sum(parts.flops.values()) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        task.survey(Spy(model), micro)
    assert sum(parts.surveyed.values()) == counter.get_total_flops()


def test_a_step_s_rows_are_in_the_order_of_the_global_batch() -> None:
    """Of two ranks of three places each, the last of the second one empty and one of the first one's unreadable."""
    whole = torch.arange(10.0).view(5, 2)
    ranks = [(torch.tensor([3, 1, 4]), torch.tensor([1.0, 0, 1])), (torch.tensor([0, 2, -1]), torch.tensor([1.0, 1, 0]))]
    values = [torch.where(places[:, None] >= 0, whole[places], math.nan) for places, _ in ranks]
    known = {"rows": torch.cat(values), "places": torch.cat([torch.where(weight > 0, places, -1) for places, weight in ranks])}
    mine = [Rows({}, weight, places, 5, lambda one: one, lambda one: known["places" if one.dtype == torch.int64 else "rows"])
            for places, weight in ranks]
    for one, own in zip(mine, values, strict=True):
        found, there = one.gathered(own)
        assert there.tolist() == [True, False, True, True, True]
        assert torch.equal(found, torch.where(there[:, None], whole, 0))
    assert torch.equal(sum(one.total(own) for one, own in zip(mine, values, strict=True)), whole[[0, 2, 3, 4]].double().sum(0))


@pytest.mark.parametrize(("changes", "key"), [
    ({"data.views": []}, "data.views"), ({"data.views": [{"name": "a"}]}, "data.views"),
    ({"data.views": [{"name": "a"}, {"name": "a"}]}, "data.views"),
    ({"data.views": [{"name": "a"}, {"name": "b", "image": 10}]}, "data.views.1.image"),
    ({"data.views": [{"name": "a"}, {"name": "b", "augment": {"crop": "center"}}]}, "data.views"),
    ({"data.views": [{"name": "a"}, {"name": "b", "augment": {"blur_radius": [0.1, 3]}}]}, "data.views.1.augment.blur_radius"),
    ({"data.views": [{"name": "a"}, {"name": "b", "augment": {"mixup": 0.8}}]}, "data.views.1.augment.mixup"),
    ({"data.views": [{"name": "a"}, {"name": "b", "augment": {"mean": [0, 0, 0]}}]}, "data.views.1.augment.mean"),
    ({"objective.prototypes": 0}, "objective.prototypes"), ({"objective.global_views": 9}, "data.views"),
    ({"objective.teacher_temp": 0.001}, "objective.teacher_temp"), ({"objective.momentum": 1.5}, "objective.momentum"),
    ({"ema": {"decay": 0.9}}, "ema"), ({"parallel.engine": "zero"}, "parallel.engine"), ({"model.family": "deit"}, "objective.name"),
    ({"objective": {"name": "classification"}, "model.classes": 3, "data.label": "cls"}, "data.views"),
    ({"optim.weight_decay": 0, "optim.weight_decay_end": 0.4}, "optim.weight_decay_end"),
], ids=str)
def test_what_cannot_be_is_named(changes: dict[str, Any], key: str) -> None:
    values = recipe().model_dump(mode="json", exclude_unset=True)
    for path, value in changes.items():
        section, _, last = path.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = value
    with pytest.raises(Exception, match=key.replace(".", r"\.")):
        check_recipe(values, "test")
