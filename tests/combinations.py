"""Combinations of settings that change how a step is computed, never what; a covering array of them; and training by one of them.

Everything that FACTORS lists is paired with everything else.  Which pairs there are is what the recipe check accepts: a pair that it
refuses with all else plain, and in every other company tried, is not in the grid, and no recipe has it."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from backbones import BACKBONES, BATCH, CLASSES, IMAGE, kept_of_groups
from host_reads import HostReads
from torch import Tensor
from torch.distributed.tensor import DTensor

from vitscale.data import MicroBatch, StepBatch
from vitscale.data.batch import ViewBatch
from vitscale.errors import RecipeError
from vitscale.models import initial_value
from vitscale.models.lora import BASE, UP, with_adapters
from vitscale.objectives import Task, build_task
from vitscale.objectives.distillation import Distilling
from vitscale.observe.meters import Meters
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.optim.groups import freeze_
from vitscale.parallel.engine import Engine, Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.recipe.load import check_recipe
from vitscale.shapes.tensor import check_tensor
from vitscale.train.step import Inputs, train_step

_linear = torch.nn.functional.linear
STEPS = 8
SIZES = (BATCH * 2,) * 3 + (BATCH,) + (BATCH * 2,) * 4      # samples of each step; the fourth is an epoch's last, and shorter
Combination = dict[str, Any]
# Learning rates so small that rounding errors do not grow from step to step (training is chaotic), and a wrong gradient is one at once.
_OPTIMIZERS = {"adamw": 3e-4, "lamb": 1e-3, "lion": 1e-5, "sgd": 1e-3}

# the first value of each is the plain one
FACTORS: dict[str, tuple[Any, ...]] = {
    "backbone": (*BACKBONES, "vit-soft", "swin-hard", "convnext-jigsaw", "swin-rotation"),
    "engine": ("ddp", "fsdp", "fsdp-tensor", "zero1", "zero2", "zero3", "accelerate"),        # accelerate runs FSDP on GPUs alone
    "ranks": (1, 2, 4),                     # four of them two by two: parallel.replicate
    "gather": ("each", "once"),
    "recompute": ("none", "blocks", "blocks-2", "blocks-3", "selective"),
    "compile": (False, True),
    "precision": ("fp32", "bf16"),
    "micro_steps": (1, 2, 3),
    "drop_path": ("none", "sample", "group"),
    "optimizer": tuple(_OPTIMIZERS),
    "clip_norm": (None, 0.3),
    "ema": (False, True),
    "freeze": (0, 1, "backbone"),
    "lora": (False, True),
    "layer_decay": (1.0, 0.8),
    "offload": (False, True),
}
PLAIN = {name: values[0] for name, values in FACTORS.items()}
# values that stand only where a pair asks for them: compiling is dear, and rounding to bf16 hides what fp32 would show
_RARE = {"compile", "precision"}


def recipe_of(one: Combination, teacher: str) -> Recipe:
    """The recipe of a combination.  Raises RecipeError if it is refused.  `teacher`: a folder that tells the classes."""
    backbone = {"vit-soft": "vit", "swin-hard": "swin", "convnext-jigsaw": "convnext", "swin-rotation": "swin"}.get(
        one["backbone"], one["backbone"])
    model, objective = (section.model_dump(exclude_unset=True) for section in BACKBONES[backbone])
    objective |= {"vit-soft": {"name": "distillation", "kind": "soft", "alpha": 0.3}, "swin-hard": {"name": "distillation"},
                  "convnext-jigsaw": {"name": "jigsaw"}, "swin-rotation": {"name": "rotation"}}.get(one["backbone"], {})
    if objective.get("name") == "distillation":
        objective["teacher"] = teacher
    model["drop_path"] = {"none": 0.0, "sample": 0.3, "group": 0.6}[one["drop_path"]]
    model |= {"dropout": one["dropout"]} if "dropout" in one else {}        # not in FACTORS: each number of ranks has draws of its own
    model.pop("drop_path_group", None)
    if one["drop_path"] == "group":
        model["drop_path_group"] = 2
    lora = {"rank": 2, "targets": ["mlp.fc1"] if backbone.startswith("convnext") else ["attn.qkv", "attn.proj"]} if one["lora"] else None
    recompute, _, every = one["recompute"].partition("-")
    engine = one["engine"].partition("-")[0].rstrip("123")
    values = {
        "name": "grid", "model": model, "objective": objective, "data": {"train": ["x.tar"]}, "global_batch": 2 * BATCH,
        "duration": f"{STEPS} steps", "ema": {"decay": 0.9} if one["ema"] else None, "lora": lora,
        "optim": {"name": one["optimizer"], "lr": _OPTIMIZERS[one["optimizer"]], "weight_decay": 0.1, "clip_norm": one["clip_norm"],
                  # large beside the gradients' rounding errors, which Adam otherwise makes steps of
                  "eps": 1e-3, "freeze": one["freeze"], "layer_decay": one["layer_decay"]},
        "parallel": {"engine": engine, "zero_stage": int(one["engine"][-1]) if engine == "zero" else 2, "device": "cpu",
                     "recompute": recompute, "recompute_every": int(every or 1), "compile": one["compile"], "tensor": _tensor(one),
                     "precision": one["precision"], "gather": one["gather"], "replicate": 2 if one["ranks"] == 4 else None,
                     "zero_offload": one["offload"], "processes": one["ranks"]},
    }
    recipe = check_recipe(values, "grid")
    check_tensor(recipe)
    return recipe


def is_accepted(one: Combination, teacher: str) -> bool:
    try:
        recipe_of(one, teacher)
    except RecipeError:
        return False
    return True


def _tensor(one: Combination) -> int:
    return 2 if one["engine"] == "fsdp-tensor" else 1


Pair = frozenset[tuple[str, Any]]


def pairs_of(one: Combination) -> Iterator[Pair]:
    return (frozenset(pair) for pair in itertools.combinations(one.items(), 2))


def covering(seed: int, teacher: str, tries: int = 40) -> tuple[list[Combination], list[Pair]]:
    """Accepted combinations such that each pair of settings that is accepted at all stands in one; and the pairs that are refused.

    Greedy (Cohen et al. 1997, AETG): each combination begins with a pair that none has yet and takes, factor by factor in random order,
    the value with which it covers most pairs and is still accepted, everything else being plain.
    """
    draw = random.Random(seed)
    accepted = functools.cache(lambda items: is_accepted(dict(items), teacher))
    left = {frozenset({(a, x), (b, y)}) for a, b in itertools.combinations(FACTORS, 2) for x in FACTORS[a] for y in FACTORS[b]}
    found, refused = [], []
    while left:
        pair = min(left, key=lambda one: sorted(map(repr, one)))
        one = _begun(pair, draw, accepted, tries)
        if one is None:
            left.discard(pair)
            refused.append(pair)
            continue
        for name in draw.sample(list(FACTORS), len(FACTORS)):
            if name not in _RARE | dict(pair).keys():
                values = draw.sample(FACTORS[name], len(FACTORS[name]))
                values.sort(key=lambda value: -sum(frozenset({(name, value), other}) in left for other in one.items() if other[0] != name))
                one = next(tried for value in values if accepted(tuple((tried := one | {name: value}).items())))
        left -= set(pairs_of(one))
        found.append(one)
    return found, refused


def _begun(pair: Pair, draw: random.Random, accepted: Any, tries: int) -> Combination | None:
    """An accepted combination with the pair: otherwise plain, or with one, then with any of the others changed."""
    fixed = dict(pair)
    if accepted(tuple((one := PLAIN | fixed).items())):
        return one
    others = [name for name in FACTORS if name not in fixed]
    for name in others:
        for value in FACTORS[name][1:]:
            if accepted(tuple((one := PLAIN | {name: value} | fixed).items())):
                return one
    for _ in range(tries):
        if accepted(tuple((one := {name: draw.choice(FACTORS[name]) for name in FACTORS} | fixed).items())):
            return one
    return None


def plain_of(one: Combination) -> Combination:
    """What a combination is to equal: one process that recomputes, compiles, shards and accumulates nothing."""
    names = ("engine", "ranks", "recompute", "compile", "precision", "micro_steps", "offload", "gather")
    return one | {name: PLAIN[name] for name in names}


Hook = Callable[[Engine, WeightAverage | None], None]


def _nothing(*given: Any) -> None:
    pass


@dataclass(frozen=True)
class Trained:
    """What STEPS steps did.  Tensors are whole, and the same on every rank."""

    losses: list[float]
    norms: list[float]
    gradients: list[dict[str, Tensor]]      # of each step, before clipping
    state: dict[str, Tensor]                # parameters, optimizer, averages at the end
    moved: dict[str, Tensor]                # by how much each parameter has changed


def train(world: World, one: Combination, teacher: str, steps: range = range(STEPS), before: Hook = _nothing,
          after_step: Callable[[Engine, WeightAverage | None, int], None] = _nothing) -> Trained:
    """As train/run.py does it, on this rank.  `before` the first step and after each, others may look at the engine and averages."""
    recipe = recipe_of(one, teacher)
    world = replace(world, parallel=recipe.parallel)
    task = _task(recipe)
    micro_batch = _micro_batch(_shares(SIZES[0], world.data_size)[0], one["micro_steps"])
    work = Work(micro_batch, one["micro_steps"], recipe.optim.clip_norm)
    try:
        return _train(world, recipe, task, open_engine(recipe.parallel, world, work), steps, before, after_step)
    finally:
        _forget(one["engine"])


def _train(world: World, recipe: Recipe, task: Task, engine: Engine, steps: range, before: Hook,
           after_step: Callable[[Engine, WeightAverage | None, int], None]) -> Trained:
    build = functools.partial(with_adapters, task.build, recipe.lora) if recipe.lora else task.build
    skeleton, first = _skeleton(task), {}

    def first_value(name: str, shape: torch.Size) -> Tensor:
        first[name] = _first_value(skeleton, name, shape)
        return first[name]

    model = engine.materialise(build, first_value)
    freeze_(model, recipe.optim.freeze)
    rates, group = torch.tensor(model.drop_rates) if recipe.model.drop_path else None, getattr(model, "drop_group", None)
    engine.adopt(model, build_optimizer(model, recipe.optim))
    ema = WeightAverage(engine.model, recipe.ema.decay) if recipe.ema else None
    before(engine, ema)
    losses, norms, gradients = [], [], []
    _note_gradients(engine, gradients)
    inputs, meters = Inputs(world.device, recipe.data.augment), Meters()
    meters.begin()
    for step in steps:
        if recipe.model.dropout:
            torch.manual_seed(hash((recipe.seed, step, world.data_rank)))
        batch = _batch(step, SIZES[step % len(SIZES)], engine.work, world, task, rates, group)
        counted = recipe.parallel.engine in ("ddp", "fsdp") and not recipe.parallel.compile
        with HostReads(micro.draws for micro in batch.micro if micro.draws is not None) if counted else nullcontext() as reads:
            result = train_step(engine, batch, task, inputs, recipe.optim.lr * (1 - step / max(steps.stop, 1)), False, 0, meters)
        assert reads is None or reads.places == ["tolist"], reads.places
        assert result.applied
        if ema is not None:
            ema.update()
        losses.append(result.loss)
        norms.append(result.grad_norm)
        after_step(engine, ema, step + 1)
    state = engine.tensors() | ({f"ema.{name}": value for name, value in ema.tensors().items()} if ema else {})
    state = {name: _whole(value).clone() for name, value in state.items()}
    return Trained(losses, norms, gradients, state, {name: state[f"model.{name}"] - value for name, value in first.items()})


def _task(recipe: Recipe) -> Task:
    task = build_task(recipe.model, recipe.objective)
    if isinstance(task, Distilling):
        size = recipe.model.channels * recipe.model.image**2
        weights = torch.randn(size, recipe.model.classes, generator=torch.Generator().manual_seed(5))
        task.teacher = lambda images: images.flatten(1) @ weights
    return task


def _skeleton(task: Task) -> torch.nn.Module:
    with torch.device("meta"):
        return task.build()


def _first_value(skeleton: torch.nn.Module, name: str, shape: torch.Size) -> Tensor:
    """The first value, and a draw besides, so that nothing is zero and the first step tests every gradient."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, name))))
    if UP in name or ".lora_A." in name:
        return 0.1 * noise
    return initial_value(skeleton, name.replace(BASE, "."), shape, 1) + (0.2 if len(shape) > 1 else 0.05) * noise


def _shares(size: int, ranks: int) -> list[int]:
    """Uneven, of whole pairs, the first the largest; of four samples the others have none."""
    other = size // (ranks + 1) // 2 * 2
    return [size - (ranks - 1) * other] + [other] * (ranks - 1)


def _micro_batch(share: int, micro_steps: int) -> int:
    return -(-share // micro_steps // 2) * 2


def _batch(step: int, size: int, work: Work, world: World, task: Task, rates: Tensor | None, group: int | None) -> StepBatch:
    """This rank's part of a global batch that is the same for every number of ranks."""
    draw = torch.Generator().manual_seed(step)
    images = torch.randint(256, (size, IMAGE, IMAGE, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(CLASSES, (size,), generator=draw)
    flip = torch.rand(size, generator=draw) < 0.5
    draws = torch.rand(size, task.num_draws, generator=draw) if task.num_draws else None
    uniforms = torch.rand(64, size + 64, generator=draw)
    keep = None
    if rates is not None:
        mine = uniforms[:len(rates)]
        keep = (mine >= rates[:, None]).float() if group is None else kept_of_groups(mine, rates, group)
    first = sum(_shares(size, world.data_size)[:world.data_rank])
    last = first + _shares(size, world.data_size)[world.data_rank]
    micro = []
    for number in range(work.micro_steps):
        low = min(first + number * work.micro_batch, last)
        places = torch.arange(low, min(low + work.micro_batch, last))
        spare = torch.arange(size, size + work.micro_batch - len(places))       # dummies: black, labelled 0, weighted 0

        def filled(values: Tensor, places: Tensor = places) -> Tensor:
            out = torch.zeros(work.micro_batch, *values.shape[1:], dtype=values.dtype)
            out[:len(places)] = values[places]
            return out

        index = torch.cat([places, spare])
        micro.append(MicroBatch(
            views=(ViewBatch(filled(images), filled(flip)),), labels=filled(labels), weight=filled(torch.ones(size)), ids=index,
            index=index, keep=None if keep is None else keep[:, index], draws=None if draws is None else filled(draws)))
    return StepBatch(step, 0, size, 0, size, micro)


def _note_gradients(engine: Engine, into: list[dict[str, Tensor]]) -> None:
    """Before each update, the whole gradient of every parameter that learns."""
    real = engine.step

    def step(*given: Any) -> Any:
        into.append({name: gradient for name, parameter in engine.model.named_parameters()
                     if (gradient := _gradient(engine, parameter)) is not None})
        return real(*given)

    engine.step = step      # type: ignore[method-assign]


def _gradient(engine: Engine, parameter: Tensor) -> Tensor | None:
    if engine.parallel.engine == "zero":
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter).detach().float().clone()
    return None if parameter.grad is None else _whole(parameter.grad).clone()


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def _forget(engine: str) -> None:
    """What libraries keep for the life of a process, and a run has to itself."""
    torch.nn.functional.linear = _linear        # DeepSpeed's stage 3 puts its own there
    if engine.startswith("accelerate"):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    torch._dynamo.reset()
