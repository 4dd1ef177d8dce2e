"""What a checkpoint says of the run besides its tensors."""

import contextlib
import platform
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

import vitscale
from vitscale.checkpoint.store import Facts
from vitscale.data import Stream
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.recipe.check import default_group, default_lanes
from vitscale.recipe.redact import redacted
from vitscale.train.prepare import Prepared
from vitscale.train.state import Progress


def facts_of(recipe: Recipe, prepared: Prepared, world: World, progress: Progress, stream: Stream) -> Facts:
    """The facts at the step boundary `progress` stands at."""
    # the stream knows the position up to which batches were handed out, which is where progress stands
    data = stream.state_dict()
    assert data["position"] == progress.now.images
    engine = recipe.parallel.engine + (f" stage {recipe.parallel.zero_stage}" if recipe.parallel.engine == "zero" else "")
    return Facts(step=progress.now.step, data=data, recipe=redacted(recipe.model_dump(mode="json")), engine=engine, world_size=world.size,
                 best=progress.best, stopping=progress.stopping, guard=progress.guard, owes_evaluation=progress.owes_evaluation,
                 versions=versions())


def versions() -> dict[str, str]:
    return {"vitscale": vitscale.__version__, "torch": torch.__version__, "python": platform.python_version()}


def bound_settings(recipe: Mapping[str, Any], index_hash: str) -> dict[str, Any]:
    """A recipe as plain values, for comparing: the shards stand there by what they hold, not by where they lie or how they are read.

    A recipe that an older vitscale wrote gains the defaults of keys that have come since.
    """
    resolved: dict[str, int] = {}
    with contextlib.suppress(ValidationError):      # of one with keys that have gone, every difference is shown as it is
        valid = Recipe.model_validate(recipe)
        recipe = valid.model_dump(mode="json")
        resolved = {"lanes": default_lanes(valid), "group": default_group(valid)}
    hidden = ("train", "val", "index_dir", "prepare", "workers", "prefetch", "log_samples", "num_samples", "max_bad_fraction",
              "cache_dir", "cache_bytes")
    data = {key: value for key, value in recipe["data"].items() if key not in hidden} | resolved
    if data.get("mix"):
        data["mix"] = [{"weight": part["weight"]} for part in data["mix"]]
    rest = {key: value for key, value in recipe.items() if key not in ("name", "runs_dir", "observe", "profile", "init")}
    return rest | {"data": data, "index_hash": index_hash}
