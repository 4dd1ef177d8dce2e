"""A training step of a recipe, train_step() itself, on made-up images: images/s, MFU against both peaks, memory, time by phase."""

import json
import logging
import os
import platform
import resource
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vitscale
from vitscale.bench.figures import Figure, spread
from vitscale.data.batch import MicroBatch, StepBatch, ViewBatch
from vitscale.data.drop_path import keep_of_groups
from vitscale.files import write_atomically
from vitscale.models import initial_value
from vitscale.objectives import build_task
from vitscale.observe.meters import PHASES, Meters
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.world import World
from vitscale.plan.forecast import forecast
from vitscale.plan.hardware import find_device, peak_for
from vitscale.recipe import Recipe
from vitscale.recipe.check import drop_group
from vitscale.recipe.schedules import Now
from vitscale.recipe.views import view_kinds
from vitscale.resilience.speed import matmul_flops, measure_peak_flops
from vitscale.train.coupling import Coupling
from vitscale.train.size import largest_micro_batch
from vitscale.train.step import Inputs, train_step
from vitscale.train.teacher import give_teacher

log = logging.getLogger(__name__)
_PHASES = ("h2d", "compute", "optimizer", "communication")


def measure_step(recipe: Recipe, world: World, steps: int, warm_up: int, micro_steps: int) -> tuple[list[Figure], dict[str, Any]]:
    """-> figures, and the facts that --save writes.  Collective.

    A step is `micro_steps` forward and backward passes of a micro-batch and one update, with the recipe's model, objective, engine,
    precision, recomputation and compilation; its images are random and lie in memory, so that nothing waits for data.
    """
    share = max(recipe.global_batch // world.data_size, 1)
    micro_batch = recipe.micro_batch or largest_micro_batch(recipe, world, share)
    coupling, batch = prepared(recipe, world, micro_batch, micro_steps)
    on_gpu = world.device.type == "cuda"
    inputs = made_inputs(recipe, world, batch)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    by_phase: dict[str, list[float]] = {name: [] for name in PHASES}
    for number in range(warm_up + steps):
        meters = Meters()
        meters.begin()
        elapsed = one_step(coupling, batch, inputs, recipe.optim.lr, meters)
        if number >= warm_up:
            seconds.append(elapsed)
            for name, took in meters.end_step(batch.size).items():
                by_phase[name].append(took)
    images = batch.size
    precision = recipe.parallel.precision
    known = forecast(recipe)
    flops = known.flops_per_image / world.size if known else None
    measured = measured_peak(world.device, precision)
    sheet, source = data_sheet_peak(recipe, world.device)
    peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    speeds = [images / took for took in seconds]
    figures = [
        spread("step", seconds, "s"), spread("speed", speeds, "images/s"),
        *([spread("MFU, of the data sheet's peak", [flops * speed / sheet for speed in speeds], "", source)] if flops and sheet else []),
        *([spread("MFU, of the peak measured here", [flops * speed / measured for speed in speeds], "",
                  f"{measured / 1e12:.3g} TFLOP/s by a large matrix product")] if flops else []),
        Figure("peak memory", peak_bytes / 1e9, "GB", note="of torch" if on_gpu else "of the process, torch itself included"),
        *(spread(f"of it {name}", by_phase[name], "s") for name in _PHASES)]
    speed = images / sorted(seconds)[len(seconds) // 2]
    facts = {
        "recipe": recipe.name, "device": device_name(world.device), "ranks": world.size, "images_per_second": speed,
        "mfu": flops * speed / (sheet or measured) if flops else None, "peak_flops": sheet or measured, "measured_peak_flops": measured,
        "micro_batch": micro_batch, "micro_steps": micro_steps, "engine": recipe.parallel.engine, "precision": precision,
        "recompute": recipe.parallel.recompute, "compile": recipe.parallel.compile, "peak_bytes": int(peak_bytes), "steps": steps,
        "versions": {"vitscale": vitscale.__version__, "torch": version("torch"), "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "load": round(os.getloadavg()[0], 1)}
    return figures, facts


def save(path: Path, facts: dict[str, Any]) -> None:
    """For `vitscale plan --measured`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(facts, indent=1) + "\n")


def prepared(recipe: Recipe, world: World, micro_batch: int, micro_steps: int) -> tuple[Coupling, StepBatch]:
    """The task with its model and optimizer under their engine, and a batch for every step."""
    engine = open_engine(recipe.parallel, world, Work(micro_batch, micro_steps, recipe.optim.clip_norm))
    task = build_task(recipe.model, recipe.objective)
    give_teacher(task, recipe, engine)
    with torch.device("meta"):
        skeleton = task.build()
    model = engine.materialise(task.build, lambda name, shape: initial_value(skeleton, name, shape, recipe.seed))
    drop_rates = model.drop_rates
    engine.adopt(model, build_optimizer(model, recipe.optim))
    micro = [_made_up(recipe, micro_batch, drop_rates, task.num_draws, pin=world.device.type == "cuda") for _ in range(micro_steps)]
    size = micro_batch * micro_steps * world.data_size
    average = WeightAverage(engine.model, recipe.ema.decay if recipe.ema else 1.0) if recipe.keeps_average else None
    return Coupling(task, engine, average), StepBatch(step=0, position=0, end=size, epoch=0, size=size, micro=micro)


def made_inputs(recipe: Recipe, world: World, batch: StepBatch) -> Inputs:
    """As in a run whose data is always there."""
    return Inputs(world.device, recipe.data.augment, (lambda: batch.micro[0]) if world.device.type == "cuda" else None)


def _made_up(recipe: Recipe, count: int, drop_rates: Sequence[float], num_draws: int, pin: bool) -> MicroBatch:
    draw = torch.Generator().manual_seed(recipe.seed)
    model = recipe.model
    several, kinds = recipe.data.multi_label, view_kinds(recipe)
    passes = count * sum(one.count for one in kinds if one.same_as is None)     # of the backbone

    def place(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if pin else tensor

    keep = None
    if (group := drop_group(recipe)) is not None:
        keep = torch.from_numpy(keep_of_groups(drop_rates, recipe.seed, 0, np.arange(passes), group, passes))
    elif any(drop_rates):
        keep = (torch.rand(len(drop_rates), passes, generator=draw) >= torch.tensor(drop_rates)[:, None]).float()
    labels = torch.randint(max(model.classes, 1), (count,), generator=draw)
    views = tuple(ViewBatch(
        place(torch.randint(0, 256, (one.count * count, one.image, one.image, model.channels), generator=draw, dtype=torch.uint8)),
        place(torch.rand(one.count * count, generator=draw) < 0.5), anchor=one.same_as is not None) for one in kinds)
    return MicroBatch(
        views=views, labels=place(labels), weight=place(torch.ones(count)), ids=torch.arange(count), index=torch.arange(count),
        keep=None if keep is None else place(keep),
        draws=place(torch.rand(count, num_draws, generator=draw)) if num_draws else None,
        targets=place(torch.nn.functional.one_hot(labels, model.classes).float()) if several else None)


def one_step(coupling: Coupling, batch: StepBatch, inputs: Inputs, lr: float, meters: Meters) -> float:
    """Train one step; -> seconds, on a GPU by its own clock, between events."""
    engine, now = coupling.engine, Now(batch.end, batch.end, batch.end)

    def step() -> None:
        surveyed = coupling.of_step(batch, inputs, now)
        train_step(engine, batch, coupling.task, inputs, lr, False, 0, meters, surveyed=surveyed)
        coupling.applied(now)

    if engine.world.device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu"


def data_sheet_peak(recipe: Recipe, device: torch.device) -> tuple[float | None, str]:
    """-> (FLOP/s, where from); None where no data sheet is known."""
    if recipe.observe.peak_flops is not None:
        return recipe.observe.peak_flops, "observe.peak_flops"
    if device.type != "cuda":
        return None, ""
    name = torch.cuda.get_device_name(device)
    found = find_device(name)
    return peak_for(name, recipe.parallel.precision), found.source if found else ""


def measured_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product on this device."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        return max(matmul_flops(device, dtype, size, 0.0) for size in (4096, 8192))
    return measure_peak_flops(dtype, budget_s=1.0)
