"""How much one rank does at a time, and against which peak its speed is held."""

import logging
import os

import torch

from vitscale.counts import plural
from vitscale.data.index import SetIndex
from vitscale.data.mixture import order_of
from vitscale.parallel.engine import Work
from vitscale.parallel.world import World
from vitscale.plan.forecast import check_micro_batch, forecast
from vitscale.plan.hardware import peak_for
from vitscale.recipe import Recipe
from vitscale.recipe.check import default_group
from vitscale.resilience.speed import measure_peak_flops

log = logging.getLogger(__name__)


def size_up(recipe: Recipe, train: SetIndex, world: World) -> Work:
    """Micro-batch (given, or what fits) and micro-steps, the same on every rank, enough for the rank with the largest share.

    Raises RecipeError where none fits, or where none is given of a model of whose memory nothing is known.
    """
    share = order_of(recipe, train).max_share(world.data_size)
    micro_batch = recipe.micro_batch
    if micro_batch is None:
        micro_batch = largest_micro_batch(recipe, world, share)
    elif micro_batch > share:
        group = default_group(recipe)
        micro_batch = -(-share // group) * group
        log.info("micro_batch %d is more than the %s of one rank; %d is used", recipe.micro_batch, plural(share, "sample"), micro_batch)
    steps, axes = -(-share // micro_batch), world.axes
    more = f"; each stands for {axes.same_size} that share its work" if axes.same_size > 1 else ""
    if recipe.parallel.engine == "fsdp" and axes.copies > 1:
        more += f"; {plural(axes.copies, 'group')} of {plural(axes.copy_size, 'rank')}, each with a copy of the state"
    log.info("%s x %s x %s for a global batch of %d%s", plural(world.data_size, "rank"), plural(steps, "micro-step"),
             plural(micro_batch, "image"), recipe.global_batch, more)
    return Work(micro_batch, steps, recipe.optim.clip_norm)


def largest_micro_batch(recipe: Recipe, world: World, share: int) -> int:
    """Of the `share` samples of a rank, as many at a time as fit.  Collective.  Raises RecipeError as size_up does."""
    check_micro_batch(recipe)
    known = forecast(recipe)
    assert known is not None        # check_micro_batch says so
    return known.micro_batch(world.size, world.local_size, world.broadcast(device_bytes(world)), share, on_gpu=world.device.type == "cuda")


def device_bytes(world: World) -> int:
    """Memory that one rank may use: its GPU's, or its part of the host's."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // world.local_size


def device_peak_flops(recipe: Recipe, world: World) -> float:
    """FLOP/s that MFU is held against: the recipe's, the data sheet's, or what matrix products reach on this CPU.  0: unknown."""
    if recipe.observe.peak_flops is not None:
        return recipe.observe.peak_flops
    if world.device.type == "cpu":
        dtype = torch.bfloat16 if recipe.parallel.precision == "bf16" else torch.float32
        return measure_peak_flops(dtype)
    name = torch.cuda.get_device_name(world.device)
    peak = peak_for(name, recipe.parallel.precision)
    if peak is None:
        log.warning("no peak is known for '%s', so MFU is left out; give observe.peak_flops", name)
    return peak or 0.0
