"""How fast a recipe's shards become batches here, against what its model takes."""

import os
import time
from collections.abc import Sequence
from typing import Any

from vitscale.bench.figures import Figure, spread
from vitscale.counts import plural
from vitscale.data import native, open_stream
from vitscale.data.index import SetIndex
from vitscale.processes import usable_cores
from vitscale.recipe import Recipe

_BATCH = 64


def measure_loader(recipe: Recipe, index: SetIndex, seconds: float, warm_up: int = 2) -> tuple[list[Figure], dict[str, Any]]:
    """Batches of one rank as training takes them, nothing computed with them, for so many seconds; at least three."""
    whole = recipe.model_copy(update={"global_batch": min(recipe.global_batch, index.num_samples)})
    wall: list[float] = []
    with open_stream(whole, index, rank=0, world=1, micro_batch=min(_BATCH, whole.global_batch)) as stream:
        for _ in range(warm_up):
            next(stream)
        began, used = time.perf_counter(), _cpu_s()
        while len(wall) < 3 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            wall.append(next(stream).size / (time.perf_counter() - start))
        elapsed, used = time.perf_counter() - began, _cpu_s() - used
        unusable = stream.skipped.total()
    images = len(wall) * whole.global_batch
    workers = recipe.data.workers or usable_cores()
    figures = [Figure("images/s", images / elapsed, "images/s", note=f"{plural(workers, 'thread')} on {plural(usable_cores(), 'core')}"),
               spread("by batch", wall, "images/s"),
               Figure("per CPU-second", images / max(used, 0.01), "images/CPU-s", note="of the whole process"),
               *_demands(recipe, images / elapsed)]
    facts = {"samples": index.num_samples, "shards": len(index.paths), "decoder": native.describe(), "batches": len(wall),
             "unusable": unusable, "load": round(os.getloadavg()[0], 1)}
    return figures, facts


def _cpu_s() -> float:
    used = os.times()
    return used.user + used.system


def _demands(recipe: Recipe, speed: float) -> Sequence[Figure]:
    """How many GPUs at 40 % MFU such a loader would feed."""
    from vitscale.plan.forecast import forecast
    from vitscale.plan.hardware import DEVICES

    peak, known = DEVICES["H100"].bf16_flops, forecast(recipe)
    if known is None:
        return []
    assert peak is not None
    wanted = 0.4 * peak / known.flops_per_image
    return [Figure("H100s that this feeds", speed / wanted, "", note=f"each takes {wanted:,.0f} images/s of this model at 40 % MFU")]
