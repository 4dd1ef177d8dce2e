"""Memory of a GPU without a GPU: a step of the real model through the real engine on fake tensors, under torch's memory tracker."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.tensor import DTensor

from vitscale.errors import RecipeError
from vitscale.models import Backbone
from vitscale.objectives import Seen, Task, build_task
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Engine, Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.fsdp import FsdpEngine
from vitscale.parallel.world import World
from vitscale.plan.answer import Exact, Plan
from vitscale.plan.command import PlanOptions
from vitscale.recipe import Recipe, load_recipe
from vitscale.recipe.axes import same_samples
from vitscale.recipe.schedules import Now
from vitscale.recipe.views import view_kinds
from vitscale.train.coupling import Coupling
from vitscale.train.step import asked


def hold_against(plan: Plan, recipe: str, overrides: Sequence[str], options: PlanOptions) -> Plan:
    """The plan with what the tracker says of the same micro-batch.  Raises RecipeError for what cannot be tracked."""
    started = time.perf_counter()
    tracked = track(load_recipe(recipe, overrides), plan.hardware.gpus, plan.batch.micro_batch, plan.batch.micro_steps,
                    plan.hardware.gpus_per_node)
    total = tracked + plan.memory.context
    return dataclasses.replace(plan, exact=Exact(total, plan.memory.peak_bytes / total - 1, time.perf_counter() - started))


def track(recipe: Recipe, world_size: int, micro_batch: int, micro_steps: int = 1, local_size: int | None = None) -> int:
    """Bytes of all tensors of rank 0 at the peak of a step, the optimizer's state being there from the steps before it.

    Nothing is computed and nothing allocated: tensors are fake and so are the other ranks.  Two things differ from a GPU and are put
    right: autocast computes norms in fp32 there, and DDP's gradients are views of its buckets, which stay from step to step.
    What no tensor shows (CUDA, NCCL, fragmentation) is not in it.  Raises RecipeError for an engine that cannot be tracked so.
    """
    parallel = recipe.parallel
    alike = same_samples(parallel)
    if parallel.engine == "zero" or alike:
        what = "parallel.engine zero: DeepSpeed" if parallel.engine == "zero" else " and ".join(f"parallel.{name}" for name in alike)
        raise RecipeError(f"--exact: {what} does not run on fake tensors; it is for engine ddp and fsdp")
    recipe = recipe.model_copy(update={"parallel": parallel.model_copy(update={
        "compile": False, "engine": "fsdp" if parallel.engine == "fsdp" else "ddp", "device": "cpu"})})
    sharded = recipe.parallel.engine == "fsdp"
    with _nobody(world_size if sharded else 1):
        world = World(0, world_size, 0, local_size or world_size, torch.device("cpu"), None, recipe.parallel) if sharded else \
            World(0, 1, 0, 1, torch.device("cpu"), None)
        engine = open_engine(recipe.parallel, world, Work(micro_batch, micro_steps, recipe.optim.clip_norm))
        if isinstance(engine, FsdpEngine):
            engine.connect()            # wants real numbers of ranks
        task = build_task(recipe.model, recipe.objective)
        with torch.device("meta"):      # before tensors are fake: fake ones cannot be exchanged for others, as materialise() does
            built = task.build()
        with FakeTensorMode(allow_non_fake_inputs=True), _norms_in_fp32():
            return _track(recipe, engine, task, built, buckets=not sharded and world_size > 1)


def _track(recipe: Recipe, engine: Engine, task: Task, built: Backbone, buckets: bool) -> int:
    work = engine.work
    model = engine.materialise(lambda: built, lambda name, shape: torch.zeros(shape))
    optimizer = build_optimizer(model, recipe.optim)
    for group in optimizer.param_groups:        # the tracker knows plain ones; the bytes of the state are the same
        group.update({key: False for key in ("fused", "foreach") if key in group})
    engine.adopt(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=not buckets)
    seen, keep = _given(recipe, task, work.micro_batch, model.drop_rates)
    average = WeightAverage(engine.model) if recipe.keeps_average else None
    averages = list(average.tensors().values()) if average else []
    coupling = Coupling(task, engine, average)
    given = [one for one in (*seen.views, seen.labels, seen.draws, keep) if one is not None]
    tracker: MemTracker
    if isinstance(engine, FsdpEngine):
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs(tuple(given))
        outside = sum(_bytes(tensor) for tensor in averages)
    else:
        tracker, outside = MemTracker(), 0
        tracker.track_external(model, optimizer, *given, *averages, *(p.grad for p in model.parameters() if p.grad is not None))
    with tracker:
        _step(engine, coupling, seen, keep, tracker)
        optimizer.step()                # the engine's own asks whether the gradient is finite, and fake numbers do not say
    peak = tracker.get_tracker_snapshot("peak")
    return outside + sum(int(one["Total"]) for one in peak.values())


def _given(recipe: Recipe, task: Task, count: int, drop_rates: Sequence[float]) -> tuple[Seen, Tensor | None]:
    """What a micro-batch of so many samples gives the task, and stochastic depth."""
    kinds = view_kinds(recipe)
    images, *more = (torch.zeros(one.count * count, recipe.model.channels, one.image, one.image) for one in kinds)
    draws = torch.zeros(count, task.num_draws) if task.num_draws else None
    keep = torch.ones(len(drop_rates), count * sum(one.count for one in kinds)) if any(drop_rates) else None
    on_host = np.random.Generator(np.random.Philox(0)).random((count, task.num_draws), np.float32)
    return Seen(images, torch.zeros(count, dtype=torch.int64), draws, tuple(more), on_host=on_host), keep


def _step(engine: Engine, coupling: Coupling, seen: Seen, keep: Tensor | None, tracker: MemTracker) -> None:
    task, count = coupling.task, len(seen.labels)
    steps = min(engine.work.micro_steps, 2)         # a third adds nothing that stays
    micro = [SimpleNamespace(views=(), index=torch.arange(number * count, (number + 1) * count)) for number in range(steps)]

    def given(one: Any, again: bool) -> tuple[Seen, Tensor, Tensor | None]:
        tracker.reset_mod_stats()
        return seen, torch.ones(count), keep

    inputs = SimpleNamespace(of=given)
    batch = SimpleNamespace(micro=micro, size=steps * count, seed=0, position=0)
    surveyed = coupling.of_step(batch, inputs, Now(1, 1, 1))     # type: ignore[arg-type]
    for number in range(steps):
        if surveyed.output is None:
            tracker.reset_mod_stats()               # it takes a module's second forward pass for a mistake
        with engine.micro_step(last=number == steps - 1):
            told = dataclasses.replace(seen, coupled=surveyed.coupled[number])
            engine.backward(task.losses(asked(engine, task, told, keep, surveyed), told).sum())


def _bytes(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


@contextlib.contextmanager
def _nobody(world_size: int) -> Iterator[None]:
    """A process group whose other ranks answer at once, with nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _norms_in_fp32() -> Iterator[None]:
    """CUDA's autocast casts what a norm gets to fp32; a CPU's does not."""
    plain = nn.LayerNorm.forward

    def forward(self: nn.LayerNorm, tensor: Tensor) -> Any:
        return plain(self, tensor.float() if torch.is_autocast_enabled("cpu") else tensor)

    nn.LayerNorm.forward = forward      # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.LayerNorm.forward = plain    # type: ignore[method-assign]
