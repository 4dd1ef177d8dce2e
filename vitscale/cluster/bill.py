"""What a job will take, as the planner sees it: ranks, memory, arithmetic and, by stated assumptions, time and money.  Pure."""

import math
from dataclasses import dataclass

from vitscale.cluster.site import Site, limit_hours
from vitscale.counts import plural
from vitscale.errors import ClusterError, RecipeError
from vitscale.plan import DEVICES, Assumptions, Fleet, fitting_micro_batch, plan_run
from vitscale.plan.families import has_formulas
from vitscale.plan.fleet import CPU
from vitscale.plan.forecast import check_micro_batch
from vitscale.plan.memory import USABLE
from vitscale.recipe import Recipe


@dataclass(frozen=True)
class Bill:
    """None: not known."""

    params: int | None          # not known: nor are memory, work, time and cost, of a model without analytic formulas
    ranks: int
    micro_batch: int | None
    peak_bytes: int | None      # of one rank
    images: int | None
    flops: float | None
    hours: float | None
    mfu: float | None           # 0..1, that `hours` come from: what the planner's assumptions make of the recipe
    cost: float | None


def ranks_per_node(recipe: Recipe, site: Site) -> int:
    """One per GPU; on nodes without any, parallel.processes."""
    return site.gpus_per_node or recipe.parallel.processes or 1


def bill(recipe: Recipe, site: Site) -> Bill:
    """Raises RecipeError when the recipe has too few samples in a batch for so many ranks, or cannot fit into the site's GPUs."""
    per_node, device = ranks_per_node(recipe, site), DEVICES[site.gpu] if site.gpu and site.gpus_per_node else None
    fleet = Fleet(site.nodes, per_node, site.gpu if site.gpu and device else CPU)
    if not has_formulas(recipe.model):
        check_micro_batch(recipe)
        return Bill(None, fleet.size, recipe.micro_batch, None, None, None, None, None, None)
    found = plan_run(recipe, fleet, Assumptions(price=site.price_per_gpu_hour), search=False)
    micro_batch: int | None = found.batch.micro_batch
    if device is not None and device.memory_bytes and found.memory.fits is False:
        if recipe.micro_batch is None:
            fitting_micro_batch(recipe, fleet.size, device.memory_bytes, found.batch.per_gpu, local_size=per_node)     # raises
        raise RecipeError(f"micro_batch: {micro_batch} images at a time need about {found.memory.peak_bytes / 2**30:.1f} GiB; {USABLE:.0%} "
                          f"of a {site.gpu}'s {device.memory_bytes / 2**30:.1f} GiB is to be had: take a smaller one, or null; "
                          "`vitscale plan` looks for the fastest that fits")
    if device is None:
        micro_batch = recipe.micro_batch
    hours = None if found.time.seconds is None else found.time.seconds / 3600
    return Bill(found.parameters.total, fleet.size, micro_batch, None if micro_batch is None else found.memory.peak_bytes,
                found.time.images, found.flops.run, hours, found.time.mfu, found.cost.money)


def links_needed(bill: Bill, site: Site) -> int:
    """Jobs of the site's time limit, one after the other, that the run takes; one more than the assumption says.  Raises ClusterError."""
    if bill.hours is None:
        how = "give gpu in cluster.yaml, data.num_samples in the recipe; or " if bill.params else "of this model that is not known; "
        raise ClusterError(f"--chain auto wants to know how long the run takes: {how}say how many, such as --chain 5")
    usable = limit_hours(site) - site.signal_lead / 3600
    if usable <= 0:
        raise ClusterError(f"time {site.time} is no longer than signal_lead, {site.signal_lead} s")
    return math.ceil(bill.hours / usable) + 1


def describe(bill: Bill, site: Site) -> list[str]:
    """Lines for people."""
    unknown = "not known"
    memory = unknown
    if bill.peak_bytes is not None:
        there = DEVICES[site.gpu].memory_bytes if site.gpu else None
        of = f" of {there / 2**30:.0f}" if there else ""
        memory = f"about {bill.peak_bytes / 2**30:.3g} GiB{of} with {plural(bill.micro_batch or 0, 'image')} at a time"
    time, money = unknown, unknown
    if bill.params is not None:
        time += f" (give gpu in cluster.yaml{'' if bill.images else ', and data.num_samples'})"
        money += " (give gpu and price_per_gpu_hour in cluster.yaml)"
    if bill.hours is not None and bill.mfu is not None:
        time = (f"{_hours(bill.hours)}, {bill.hours * bill.ranks:,.1f} GPU-hours, assuming {bill.mfu:.0%} MFU on {site.gpu}: "
                "an assumption, not a measurement (`vitscale plan` says what it rests on)")
    if bill.cost is not None:
        money = f"{bill.cost:,.2f} at {site.price_per_gpu_hour:g} a GPU-hour"
    rows = [
        ("model", f"{unknown} (`vitscale bench step` measures it)" if bill.params is None else f"{bill.params:,} parameters"),
        ("ranks", f"{bill.ranks}: {plural(site.nodes, 'node')} of {bill.ranks // site.nodes}"),
        ("memory", memory),
        ("work", unknown if bill.flops is None else f"{plural(bill.images or 0, 'image')}, {bill.flops:.3g} FLOP"),
        ("time", time),
        ("cost", money),
    ]
    return [f"{name:<8}{text}" for name, text in rows]


def _hours(hours: float) -> str:
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"
