"""environment.json in the run folder: what an attempt runs on and how far it is to go, for the page, the report and the model card."""

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitscale.files import write_json
from vitscale.objectives import num_parameters
from vitscale.parallel.world import World
from vitscale.plan.forecast import forecast
from vitscale.recipe import Recipe
from vitscale.recipe.external import package_of
from vitscale.runfolder import ENVIRONMENT
from vitscale.train.facts import versions
from vitscale.train.prepare import Prepared


def write_environment(recipe: Recipe, prepared: Prepared, world: World, nodes: Sequence[str], peak_flops: float, attempt: int) -> None:
    """Only for the holder of the run folder.  On a full disk nothing is written: the run does not need it."""
    known = forecast(recipe)
    found: dict[str, Any] = {
        "attempt": attempt, "started": time.time(), "versions": versions() | package_of(recipe.model),
        "device": _device_name(world.device), "world": world.size, "nodes": list(dict.fromkeys(nodes)), "engine": recipe.parallel.engine,
        "precision": recipe.parallel.precision,
        "peak_flops": peak_flops or None, "flops_per_image": known.flops_per_image if known else None,
        "parameters": num_parameters(recipe.model, recipe.objective), "global_batch": recipe.global_batch,
        "total_images": prepared.schedule.total, "num_samples": prepared.train.num_samples, "directory": str(Path.cwd()),
        "system": f"{platform.system()} {platform.release()}, {os.cpu_count()} CPU cores",
    }
    with contextlib.suppress(OSError):
        write_json(prepared.folder / ENVIRONMENT, found)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
