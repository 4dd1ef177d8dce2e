"""What a run costs: device-hours, money, energy; and how often it is best to write a checkpoint."""

import math
from dataclasses import dataclass

from vitscale.plan.fleet import Fleet
from vitscale.plan.params import count_params
from vitscale.recipe.schema import ENGINES, Recipe
from vitscale.shapes.storage import checkpoint_bytes, retained_checkpoints

MTBF_HOURS = 50_000.0   # of one GPU and what belongs to it: 419 unexpected interruptions in 54 days of 16,384 H100
#                         (Grattafiori et al. 2024, The Llama 3 herd of models, section 3.3.4: one in 3.1 hours, 50,700 GPU-hours)
COPY = 10e9             # bytes/s from a GPU to its host, while training stands still for a checkpoint.  An assumption
WRITE = 1e9             # bytes/s of a node to storage.  An assumption
LEAST_STALL_S = 0.2     # of a checkpoint behind training's back: benchmarks/rows/unattended-stall.json


@dataclass(frozen=True)
class Cost:
    """None: not known."""

    gpu_hours: float | None
    price_per_gpu_hour: float | None
    money: float | None
    kwh: float | None       # of whole nodes at their greatest power, as data sheets have it; the building's cooling is not counted


def cost(fleet: Fleet, seconds: float | None, price: float | None) -> Cost:
    if seconds is None:
        return Cost(None, price, None, None)
    hours = seconds / 3600 * fleet.size
    host = fleet.host
    return Cost(hours, price, None if price is None else hours * price,
                None if host is None else hours * host.watts / host.devices / 1000)


@dataclass(frozen=True)
class Checkpoints:
    """Sizes of a recipe's checkpoints, and the interval between them that loses least time."""

    bytes: int
    retained: int
    stall_s: float          # that training stands still for one
    write_s: float          # until it is whole on the storage
    mtbf_s: float           # of the whole fleet
    interval_s: float
    interval_steps: int | None
    lost_share: float       # of the time, at that interval: stalls, and what is done again after a failure
    recipe_interval_s: float | None     # what the recipe asks for; None: no interval, or not known
    recipe_lost_share: float | None


def young_daly(stall_s: float, mtbf_s: float) -> float:
    """The interval between checkpoints that loses least (Daly 2006, equation 37; its first term is Young's 1974).  Seconds.

    sqrt(2 d M) [1 + sqrt(d / 2 M) / 3 + d / 18 M] - d for d < 2 M, else M: nothing helps where failures come faster than checkpoints.
    """
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = stall_s / (2 * mtbf_s)
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def lost_share(interval_s: float, stall_s: float, mtbf_s: float) -> float:
    """Of the time: a stall for each interval, and half an interval again for each failure; to first order (Young 1974)."""
    return stall_s / (interval_s + stall_s) + interval_s / 2 / mtbf_s


def checkpoints(recipe: Recipe, fleet: Fleet, step_s: float | None, mtbf_hours: float) -> Checkpoints:
    """`mtbf_hours` of one GPU."""
    parameters = count_params(recipe.model, recipe.objective)
    size, mtbf_s = checkpoint_bytes(recipe, parameters), mtbf_hours * 3600 / fleet.size
    write_s = size / (WRITE * fleet.nodes)
    sharded = ENGINES[recipe.parallel.engine] != "copies"
    copies = 4 * parameters * (4 if recipe.keeps_average else 3)
    stall_s = max(copies / (fleet.size if sharded else 1) / COPY, LEAST_STALL_S) if recipe.checkpoint.background else write_s
    interval_s = max(young_daly(stall_s, mtbf_s), write_s)      # the next one waits for the one before
    every, asked = recipe.checkpoint.every, None
    if every is not None and every.seconds is not None:
        asked = max(every.seconds, step_s or 0.0)
    elif every is not None and step_s is not None:
        try:
            images = every.images(recipe.data.num_samples, recipe.global_batch, recipe.data.repeats)
            asked = max(images / recipe.global_batch, 1) * step_s
        except ValueError:      # in epochs of a number of samples that the recipe does not declare
            asked = None
    return Checkpoints(
        size, retained_checkpoints(recipe), stall_s, write_s, mtbf_s, interval_s,
        None if step_s is None else max(round(interval_s / step_s), 1), lost_share(interval_s, stall_s, mtbf_s), asked,
        None if asked is None else lost_share(asked, stall_s, mtbf_s))
