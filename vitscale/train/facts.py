"""What a checkpoint says of the run besides its tensors."""

import platform

import torch

import vitscale
from vitscale.checkpoint.store import RunFacts
from vitscale.data import Stream
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.recipe.external import package_of
from vitscale.recipe.redact import redacted
from vitscale.train.prepare import Prepared
from vitscale.train.state import Progress


def facts_of(recipe: Recipe, prepared: Prepared, world: World, progress: Progress, stream: Stream,
             frozen: str | None = None) -> RunFacts:
    """The facts at the step boundary `progress` stands at.  frozen: teacher.frozen_hash()."""
    # the stream knows the position up to which batches were handed out, which is where progress stands
    data = stream.state_dict()
    assert data["position"] == progress.now.images
    engine = recipe.parallel.engine + (f" stage {recipe.parallel.zero_stage}" if recipe.parallel.engine == "zero" else "")
    return RunFacts(
        step=progress.now.step, data=data, recipe=redacted(recipe.model_dump(mode="json")), engine=engine, world_size=world.size,
        best=progress.best, stopping=progress.stopping, guard=progress.guard, owes_evaluation=progress.owes_evaluation,
        versions=versions() | package_of(recipe.model), frozen=frozen)


def versions() -> dict[str, str]:
    return {"vitscale": vitscale.__version__, "torch": torch.__version__, "python": platform.python_version()}
