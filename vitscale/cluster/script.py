"""The text of a batch script, equal in form to slurm/*.sh.  Pure."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.cluster.site import Site
from vitscale.recipe import RECIPES

HOME = RECIPES.parent       # of launch/ and slurm/ too: the checkout, or what a wheel carries


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM, besides what the site says."""

    name: str
    output: str                         # SLURM's pattern; %j is the job's number, %A_%a those of an array's task
    ranks_per_node: int
    recipe: str | None                  # None: an array, whose tasks take theirs from `sweep`
    overrides: Sequence[str] = ()
    sweep: str | None = None
    tasks: int = 0                      # of the array
    at_once: int | None = None          # of these; None: all
    after: str | None = None            # a job that must have ended, however it did
    requeue: bool = True


def render(job: Job, site: Site) -> str:
    """The script.  Recipe, overrides and paths are quoted for the shell."""
    directives = [f"--job-name={job.name}"]
    if job.sweep is not None:
        directives.append(f"--array=0-{job.tasks - 1}" + (f"%{job.at_once}" if job.at_once else ""))
    directives += [f"--{key}={value}" for key in ("account", "partition", "qos") if (value := getattr(site, key))]
    directives += [f"--nodes={site.nodes}", f"--ntasks-per-node={job.ranks_per_node}"]
    if site.gpus_per_node:
        directives.append(f"--gpus-per-node={site.gpus_per_node}")
    directives.append(f"--cpus-per-task={site.cpus_per_task}" if site.cpus_per_task else "--exclusive")
    directives += [f"--time={site.time}", f"--signal=B:USR2@{site.signal_lead}", "--requeue" if job.requeue else "--no-requeue",
                   "--open-mode=append", f"--output={_quoted(job.output)}"]
    if job.after is not None:
        directives.append(f"--dependency=afterany:{job.after}")
    directives += site.directives

    exports = {"SETUP": site.setup, "VENV": site.venv, "CONTAINER": site.container, "PREFIX": site.prefix,
               "NCCL_SOCKET_IFNAME": site.network_interface, "GLOO_SOCKET_IFNAME": site.network_interface}
    lines = ["#!/bin/bash", f"# {job.name}: written by `vitscale submit`; it can be edited and submitted again by sbatch.", ""]
    lines += [f"#SBATCH {directive}" for directive in directives]
    lines += ["", *(f"export {name}={shlex.quote(value)}" for name, value in exports.items() if value)]
    lines += [f"home={shlex.quote(str(HOME))}", 'source "$home/launch/batch.sh"']
    if job.sweep is not None:
        lines.append(f"choose_recipe {shlex.quote(job.sweep)}")
    recipe = '"$recipe"' if job.recipe is None else shlex.quote(job.recipe)
    lines.append(" ".join(["train", recipe, *map(shlex.quote, job.overrides)]))
    return "\n".join(lines) + "\n"


def _quoted(path: str) -> str:
    """For a directive, in which SLURM takes quotes and backslashes as a shell does."""
    return path if all(letter.isalnum() or letter in "/._%-+" for letter in path) else '"' + path.replace('"', '\\"') + '"'


def pattern_of(folder: Path) -> str:
    """A folder as part of SLURM's pattern of a file's name, in which % has a meaning."""
    return str(folder).replace("%", "%%")
