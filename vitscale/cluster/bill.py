"""What a job will take: ranks, memory, arithmetic and, by a stated assumption, time and money.  Pure."""

import math
from dataclasses import dataclass

from vitscale.cluster.site import Site, limit_hours
from vitscale.errors import ClusterError, RecipeError
from vitscale.plan import DEVICES, Memory, count_params, estimate, fitting_micro_batch, training_flops_per_image
from vitscale.plan.memory import USABLE
from vitscale.recipe import Recipe
from vitscale.recipe.check import default_group

ASSUMED_MFU = 0.4       # of the GPU's dense peak; nobody has measured this recipe on this cluster


@dataclass(frozen=True)
class Bill:
    """None: not known."""

    params: int
    ranks: int
    micro_batch: int | None
    memory: Memory | None       # of one rank
    images: int | None
    flops: float | None
    hours: float | None         # at ASSUMED_MFU
    cost: float | None


def ranks_per_node(recipe: Recipe, site: Site) -> int:
    """One per GPU; on nodes without any, parallel.processes."""
    return site.gpus_per_node or recipe.parallel.processes or 1


def bill(recipe: Recipe, site: Site) -> Bill:
    """Raises RecipeError when the recipe has too few samples in a batch for so many ranks, or cannot fit into the site's GPUs."""
    ranks = site.nodes * ranks_per_node(recipe, site)
    shares, groups = max(ranks // recipe.parallel.tensor, 1), recipe.global_batch // default_group(recipe)
    if shares > groups:
        raise RecipeError(f"global_batch: {recipe.global_batch} is shared out in groups of {default_group(recipe)} (data.group), which is "
                          f"enough for {groups} ranks, not for {shares}; take fewer nodes, or a larger batch")
    device = DEVICES[site.gpu] if site.gpu and site.gpus_per_node else None
    share = -(-recipe.global_batch // shares)
    micro_batch, memory = recipe.micro_batch, None
    if micro_batch is None and device is not None:
        micro_batch = fitting_micro_batch(recipe, ranks, device.memory_bytes, share)
    if micro_batch is not None:
        memory = estimate(recipe, ranks, micro_batch)
        if device is not None and memory.total > USABLE * device.memory_bytes:
            raise RecipeError(f"micro_batch: {micro_batch} images at a time need about {memory.total / 2**30:.1f} GiB; {USABLE:.0%} of a "
                              f"{site.gpu}'s {device.memory_bytes / 2**30:.1f} GiB is to be had: take a smaller one, or null")
    images = _images(recipe)
    flops = None if images is None else float(images * training_flops_per_image(recipe.model, recipe.objective))
    hours = cost = None
    if device is not None and flops is not None:
        peak = device.bf16_flops if recipe.parallel.precision == "bf16" else device.fp32_flops
        hours = flops / (ranks * peak * ASSUMED_MFU) / 3600
        cost = None if site.price_per_gpu_hour is None else hours * ranks * site.price_per_gpu_hour
    return Bill(count_params(recipe.model, recipe.objective), ranks, micro_batch, memory, images, flops, hours, cost)


def _images(recipe: Recipe) -> int | None:
    try:
        return recipe.duration.images(recipe.data.num_samples, recipe.global_batch, recipe.data.repeats)
    except ValueError:
        return None             # in epochs, of a number of samples that the recipe does not declare


def links_needed(bill: Bill, site: Site) -> int:
    """Jobs of the site's time limit, one after the other, that the run takes; one more than the assumption says.  Raises ClusterError."""
    if bill.hours is None:
        raise ClusterError("--chain auto wants to know how long the run takes: give gpu in cluster.yaml, data.num_samples in the recipe; "
                           "or say how many, such as --chain 5")
    usable = limit_hours(site) - site.signal_lead / 3600
    if usable <= 0:
        raise ClusterError(f"time {site.time} is no longer than signal_lead, {site.signal_lead} s")
    return math.ceil(bill.hours / usable) + 1


def describe(bill: Bill, site: Site) -> list[str]:
    """Lines for people."""
    unknown = "not known"
    memory = unknown
    if bill.memory is not None:
        of = f" of {DEVICES[site.gpu].memory_bytes / 2**30:.0f}" if site.gpu else ""
        memory = f"about {bill.memory.total / 2**30:.3g} GiB{of} with {bill.micro_batch} images at a time"
    time = f"{unknown} (give gpu in cluster.yaml{'' if bill.images else ', and data.num_samples'})"
    money = f"{unknown} (give gpu and price_per_gpu_hour in cluster.yaml)"
    if bill.hours is not None:
        time = (f"{_hours(bill.hours)}, {bill.hours * bill.ranks:,.1f} GPU-hours, assuming {ASSUMED_MFU:.0%} MFU on {site.gpu}: "
                "an assumption, not a measurement")
    if bill.cost is not None:
        money = f"{bill.cost:,.2f} at {site.price_per_gpu_hour:g} a GPU-hour"
    rows = [
        ("model", f"{bill.params:,} parameters"),
        ("ranks", f"{bill.ranks}: {site.nodes} {'node' if site.nodes == 1 else 'nodes'} of {bill.ranks // site.nodes}"),
        ("memory", memory),
        ("work", unknown if bill.flops is None else f"{bill.images:,} images, {bill.flops:.3g} FLOP"),
        ("time", time),
        ("cost", money),
    ]
    return [f"{name:<8}{text}" for name, text in rows]


def _hours(hours: float) -> str:
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"
