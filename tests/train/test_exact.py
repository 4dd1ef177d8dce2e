"""The planner's memory against torch's tracker: the real model and engine on fake tensors."""

import itertools
from collections.abc import Sequence

import pytest

from vitscale.errors import RecipeError
from vitscale.plan import estimate, find_fleet, plan_run
from vitscale.plan.command import PlanOptions
from vitscale.recipe import Recipe, load_recipe
from vitscale.train.exact import hold_against, track

# wide and shallow, so that tracking takes seconds: what a block keeps does not depend on their number
SHALLOW = ["model.size=base", "model.patch=16", "model.depth=3", "model.classes=1000", "parallel.compile=false"]


def recipe(*overrides: str) -> Recipe:
    return load_recipe("vit_huge", [*SHALLOW, *overrides])


def error_of(section: Recipe, world: int, micro_batch: int, micro_steps: int = 1) -> float:
    planned = estimate(section, world, micro_batch, micro_steps, on_gpu=False).total
    return planned / track(section, world, micro_batch, micro_steps) - 1


@pytest.mark.slow       # each runs a step of a model, operation by operation in Python
@pytest.mark.parametrize(("engine", "world"), [("fsdp", 64), ("ddp", 8)])
@pytest.mark.parametrize("recompute", ["none", "blocks", "selective"])
def test_within_five_percent_of_the_tracker(engine, world, recompute):
    section = recipe(f"parallel.engine={engine}", f"parallel.recompute={recompute}")
    assert abs(error_of(section, world, 32)) < 0.05


@pytest.mark.slow       # the same
@pytest.mark.parametrize(("overrides", "world", "steps"), [
    (["parallel.engine=fsdp"], 8, 2),                                       # whole gradients stay between micro-steps
    (["parallel.engine=fsdp", "ema={decay: 0.99}", "model.layer_scale=1e-5", "model.pool=token"], 8, 1),
    (["parallel.engine=ddp", "parallel.precision=fp32", "parallel.recompute=none"], 1, 1),
    (["parallel.engine=fsdp", "parallel.replicate=8", "parallel.gather=once"], 64, 2),
], ids=["accumulated", "ema", "alone", "copies"])
def test_within_five_percent_otherwise_too(overrides, world, steps):
    assert abs(error_of(recipe(*overrides), world, 16, steps)) < 0.05


ALIKE, FEW = "data.views=[{name: a, count: 4}]", "objective.prototypes=512"
VIEWED = [*itertools.product(("dino_s16_in1k",), ("fsdp", "ddp"), ("none", "blocks"), (1, 2), ((), (ALIKE,)), (16,)),
          ("dino_s16_in1k", "fsdp", "selective", 1, (), 16), ("ibot_b16_in1k", "fsdp", "none", 1, (ALIKE,), 16),
          *itertools.product(("ibot_b16_in1k",), ("fsdp", "ddp"), ("none",), (1,), ((),), (16,)),
          *itertools.product(("lejepa_s8_imagenette",), ("fsdp", "ddp"), ("none",), (1,), ((), ("parallel.precision=fp32",)), (8,)),
          *(("lejepa_s8_imagenette", "fsdp", recompute, 1, (), 16) for recompute in ("blocks", "selective")),
          ("lejepa_s8_imagenette", "fsdp", "none", 2, (), 8), *(("lejepa_b14", engine, "none", 1, (), 8) for engine in ("fsdp", "ddp")),
          *itertools.product(("dino_s16_in1k",), ("fsdp", "ddp"), ("none",), (1,), ((), (ALIKE,)), (64,)),
          *itertools.product(("dino_s16_in1k",), ("fsdp", "ddp"), ("none",), (1,), ((FEW,), ("parallel.precision=fp32",)), (16,))]


def error_of_views(name: str, engine: str, recompute: str, steps: int, changes: Sequence[str], micro_batch: int = 16) -> float:
    section = load_recipe(name, ["model.depth=3", "parallel.compile=false", f"parallel.engine={engine}", f"parallel.recompute={recompute}",
                                 *changes])
    return error_of(section, 8, micro_batch, steps)


@pytest.mark.slow       # the same
@pytest.mark.parametrize(("name", "engine", "recompute", "changes"), [
    ("dino_s16_in1k", "fsdp", "blocks", ()), ("lejepa_s8_imagenette", "fsdp", "none", ())])
def test_a_teacher_and_views_of_several_sizes_are_counted(name, engine, recompute, changes):
    """Of many prototypes; and a student that is passed through once, by the survey, where a step has one micro-batch."""
    assert abs(error_of_views(name, engine, recompute, 1, changes)) < 0.05


@pytest.mark.all
@pytest.mark.parametrize(("name", "engine", "recompute", "steps", "changes", "micro_batch"), VIEWED)
def test_they_are_however_it_is_trained(name, engine, recompute, steps, changes, micro_batch):
    assert abs(error_of_views(name, engine, recompute, steps, changes, micro_batch)) < 0.05


@pytest.mark.slow       # the same
def test_what_groups_of_stochastic_depth_save_comes_on_top():
    """The planner does not count on it."""
    dropping = ["model.drop_path=0.5", "model.drop_path_schedule=constant"]
    masked, grouped = recipe(*dropping), recipe(*dropping, "model.drop_path_group=8")
    assert track(grouped, 8, 16) < 0.8 * track(masked, 8, 16)
    assert estimate(grouped, 8, 16, on_gpu=False) == estimate(masked, 8, 16, on_gpu=False)


@pytest.mark.all
@pytest.mark.parametrize(("size", "sharding", "recompute"), list(itertools.product(
    (("base", 16), ("large", 16), ("huge", 14)), (("fsdp", 64), ("fsdp", 8), ("ddp", 8)), ("none", "blocks", "selective"))))
def test_the_whole_grid(size, sharding, recompute):
    (name, patch), (engine, world) = size, sharding
    section = load_recipe("vit_huge", [f"model.size={name}", f"model.patch={patch}", f"parallel.engine={engine}", "model.classes=1000",
                                       f"parallel.recompute={recompute}"])
    assert abs(error_of(section, world, 32)) < 0.05


@pytest.mark.slow       # the same
def test_a_plan_says_how_far_it_is_from_the_tracker():
    overrides = [*SHALLOW, "parallel.engine=fsdp", "micro_batch=8"]
    plan = plan_run(load_recipe("vit_huge", overrides), find_fleet("8xH100"), search=False)
    found = hold_against(plan, "vit_huge", overrides, PlanOptions("8xH100")).exact
    assert abs(found.difference) < 0.05
    assert plan.memory.peak_bytes == pytest.approx(found.peak_bytes * (1 + found.difference))


def test_what_cannot_be_tracked_is_refused():
    with pytest.raises(RecipeError, match=r"--exact: parallel\.engine zero: DeepSpeed does not run on fake tensors"):
        track(recipe("parallel.engine=zero"), 8, 8)
