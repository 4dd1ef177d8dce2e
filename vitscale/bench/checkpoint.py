"""How long training stands still for a checkpoint, and how long until it is safe."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vitscale.bench.figures import Figure, spread
from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.store import CheckpointWriter, RunFacts
from vitscale.models import initial_value
from vitscale.objectives import build_task
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.train.facts import versions


def measure_checkpoint(recipe: Recipe, world: World, folder: Path, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Checkpoints of the recipe's model with a full optimizer state, in a folder of their own below `folder`, which is removed again.
    One rank.  Raises what Writer raises."""
    engine = open_engine(recipe.parallel, world, Work(1, 1, recipe.optim.clip_norm))
    task = build_task(recipe.model, recipe.objective)
    with torch.device("meta"):
        skeleton = task.build()
    model = engine.materialise(task.build, lambda name, shape: initial_value(skeleton, name, shape, recipe.seed))
    engine.adopt(model, build_optimizer(model, recipe.optim))
    for parameter in engine.model.parameters():     # one update of zeros makes the optimizer's state
        parameter.grad = torch.zeros_like(parameter)
    engine.step()
    tensors = engine.tensors()
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    stalls: list[float] = []
    published: list[float] = []
    with tempfile.TemporaryDirectory(prefix=".vitscale-bench-", dir=folder) as name:
        run = Path(name)
        lease = Lease.take(run)
        try:
            writer = CheckpointWriter(run / "checkpoints", rank=0, lease=lease, attempt=1, settings=recipe.checkpoint,
                            on_published=lambda step, seconds: published.append(seconds))
            for step in range(1, repeats + 2):
                began = time.perf_counter()
                writer.save(engine.tensors(), RunFacts(step=step, data={}, recipe={}, engine=recipe.parallel.engine, world_size=1,
                                                    versions=versions()))
                stalls.append(time.perf_counter() - began)
                writer.wait()
            writer.close()
        finally:
            lease.release()
    figures = [spread("training stands still", stalls[1:], "s", "for the copy that is written behind its back"),
               spread("until it is published", published[1:], "s", "written, synced, checksummed, renamed"),
               spread("of the folder", [total / seconds / 1e6 for seconds in published[1:]], "MB/s")]
    return figures, {"bytes": total, "tensors": len(tensors), "device": world.device.type}
