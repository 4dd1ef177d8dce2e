"""`vitscale doctor`: the checks of preflight by hand, with what is installed here and whether the recipe fits."""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vitscale.counts import plural
from vitscale.data import native
from vitscale.errors import EXIT_DONE, EXIT_WRONG_INPUT, DataError, RecipeError
from vitscale.objectives import num_parameters
from vitscale.observe.console import make_console, setup_logging
from vitscale.parallel.kernels import chosen
from vitscale.parallel.launch import hold_lifeline, launch, rank_command
from vitscale.parallel.rank_info import RankInfo, node_name, rank_info_from_environment
from vitscale.parallel.world import World, joined
from vitscale.plan.forecast import forecast
from vitscale.processes import usable_cores
from vitscale.recipe import Recipe
from vitscale.resilience.checks import Finding
from vitscale.resilience.preflight import look, measured, merge
from vitscale.terminal import console, size, table
from vitscale.train.prepare import Prepared, prepare
from vitscale.train.size import device_bytes, size_up

_LIBRARIES = ("deepspeed", "accelerate", "webdataset", "safetensors", "opencv-python-headless", "simplejpeg")


def doctor(recipe: Recipe, is_meant: bool, as_json: bool) -> int:
    """Look at this machine, or, as one of the ranks that srun or torchrun started, at all of them; returns 0, or 2 if something failed.

    By hand it starts a rank for each GPU, on a CPU those of the recipe and at least two, so that the exchange is tried too.
    `is_meant`: its run folder and shards are looked at; else it only stands in for one.  Raises UserError.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")     # as train does
    setup_logging(make_console(), level=logging.WARNING)
    place = rank_info_from_environment()
    if place is not None:
        hold_lifeline()
        return _as_rank(recipe, place, is_meant, as_json)
    import torch

    gpus = torch.cuda.device_count() if recipe.parallel.device != "cpu" else 0
    processes = recipe.parallel.processes or gpus or 2
    if processes == 1:
        return _as_rank(recipe, RankInfo(), is_meant, as_json)
    with tempfile.TemporaryDirectory(prefix="vitscale-doctor-") as logs:
        return launch(rank_command(sys.argv[1:]), processes, Path(logs), time.time()).code


def _as_rank(recipe: Recipe, place: RankInfo, is_meant: bool, as_json: bool) -> int:
    prepared, data = _data(recipe) if is_meant else (None, [])
    with joined(recipe.parallel, place) as world:
        indexes = [index for index in (prepared.train, prepared.val) if index is not None] if prepared else []
        parts = world.gather(data)
        data = world.broadcast(merge([finding for part in parts for finding in part]) if parts else None)
        ready = all(finding.state == "ok" for finding in data)      # on every rank
        verdict = look(world, recipe, prepared.folder if prepared and ready else None, indexes if ready else [])
        findings = [*_installed(), *_machine(world), _kernels(recipe, world), *verdict.findings, *data]
        if prepared is not None and ready:
            findings.append(_fits(recipe, prepared, world))
        if world.is_first:
            _show(findings, as_json)
        world.barrier()     # whoever started the ranks ends them once the first has gone
    return EXIT_WRONG_INPUT if any(finding.state == "failed" for finding in findings) else EXIT_DONE


def _data(recipe: Recipe) -> tuple[Prepared | None, list[Finding]]:
    try:
        prepared = prepare(recipe)
    except (DataError, RecipeError) as error:
        return None, [Finding("recipe and data", "failed", "", "", str(error), node_name())]
    counts = plural(len(prepared.train.urls), "shard") + (f"; for validation {prepared.val.num_samples:,}" if prepared.val else "")
    return prepared, [Finding("training samples", "ok", prepared.train.num_samples, "", counts)]


def _installed() -> list[Finding]:
    import torch

    import vitscale

    found = [Finding("vitscale", "ok", vitscale.__version__), Finding("python", "ok", platform.python_version(), "", sys.executable),
             Finding("torch", "ok", torch.__version__, "", f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs")]
    for library in _LIBRARIES:
        try:
            found.append(Finding(library, "ok", importlib.metadata.version(library)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(library, "warning", "", "", "is not installed; `pip install` vitscale again"))
    if any(finding.name == "simplejpeg" and finding.state == "ok" for finding in found):
        found.append(Finding("JPEG decoder", "ok", "native" if native.available() else "simplejpeg", "", native.describe()))
    else:
        found.append(Finding("JPEG decoder", "failed", "", "", "simplejpeg is missing; `pip install simplejpeg`"))
    return found


def _machine(world: World) -> list[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [Finding("CPU cores", "ok", usable_cores(), "", f"that this process may use; {size(memory)} of memory")]
    if world.device.type == "cuda":
        found.append(Finding("GPUs", "ok", torch.cuda.device_count(), "", torch.cuda.get_device_name(world.device)))
    else:
        found.append(Finding("GPUs", "ok", 0, "", "that torch sees; training runs on the CPU"))
    slurm = shutil.which("sbatch")
    if slurm is None:
        found.append(Finding("SLURM", "ok", "not here"))
    else:
        answer = subprocess.run([slurm, "--version"], capture_output=True, text=True, timeout=20)
        job = os.environ.get("SLURM_JOB_ID")
        version = answer.stdout.strip().removeprefix("slurm ") or "installed"
        found.append(Finding("SLURM", "ok", version, "", f"inside job {job}" if job else "outside a job"))
    return found


def _kernels(recipe: Recipe, world: World) -> Finding:
    """Collective."""
    choice = chosen(recipe.parallel, world)
    return Finding("kernels", "warning" if choice.failed else "ok", choice.names, "", choice.why)


def _fits(recipe: Recipe, prepared: Prepared, world: World) -> Finding:
    """Collective."""
    there = size(device_bytes(world))
    try:
        work = size_up(recipe, prepared.train, world)
    except RecipeError as error:
        return Finding("memory", "failed", "", "", str(error))
    params, known = num_parameters(recipe.model, recipe.objective), forecast(recipe)
    words = f"of {there} per rank, with micro_batch {work.micro_batch} and {params:,} parameters"
    if known is None:
        return Finding("memory", "ok", "not known", "", f"{words}: model.family {recipe.model.family} has no analytic formula of it")
    wanted = known.peak_bytes(world.size, world.local_size, work.micro_batch, work.micro_steps, world.device.type == "cuda")
    words = f"{words}, as estimated"
    if wanted > device_bytes(world):
        return Finding("memory", "failed", wanted / 1e9, "GB", f"{words}; leave micro_batch to vitscale, or see `vitscale plan`")
    return Finding("memory", "ok", wanted / 1e9, "GB", words)


def _show(findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        sound = all(finding.state != "failed" for finding in findings)
        print(json.dumps({"sound": sound, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return
    marks = {"ok": "", "warning": "warning", "failed": "FAILED"}
    rows = [(one.name, marks[one.state], measured(one), one.words, one.where) for one in findings]
    console().print(table(["check", "", "found", "", "where"], rows, words=range(5), fold=True))
