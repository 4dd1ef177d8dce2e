"""The facts of one cluster, from its cluster.yaml: what a batch script for it says on top, and what its GPUs are."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vitscale.errors import ClusterError, RecipeError
from vitscale.plan.hardware import DEVICES
from vitscale.recipe.fields import Count, CountOrZero, NotNegative, Section
from vitscale.recipe.load import check_section, read_values

FILE = Path("slurm/cluster.yaml")


def _one_line(text: str) -> str:
    """A line break would end the directive or the assignment, and begin something else."""
    if not text.isprintable():
        raise PydanticCustomError("one_line", "wants one line of printable text")
    return text


def _gpu(name: str) -> str:
    if name not in DEVICES:
        raise PydanticCustomError("gpu", "wants one of {known}, or nothing", {"known": ", ".join(DEVICES)})
    return name


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:@+-]*$")]      # SLURM's names and lists of them
TimeLimit = Annotated[str, Field(pattern=r"^([0-9]{1,3}-)?[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]$")]
Line = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
Directive = Annotated[str, Field(pattern=r"^--[a-z][a-z0-9-]*(=[!-~]+)?$")]


class Site(Section):
    """One cluster.  What stands at null is left to SLURM's own defaults."""

    account: Word | None = None
    partition: Word | None = None
    qos: Word | None = None
    nodes: Count = 1                        # of a job, unless --nodes says otherwise
    gpus_per_node: CountOrZero = 8          # and ranks; 0: nodes without GPUs, with parallel.processes ranks
    cpus_per_task: Count | None = None      # cores of a rank; null: whole nodes (--exclusive), their cores shared out among the ranks
    time: TimeLimit = "24:00:00"            # [days-]hours:minutes:seconds
    signal_lead: Annotated[CountOrZero, Field(ge=30, le=65535)] = 300   # seconds before the time limit at which a run saves and stops
    requeue: bool = True                    # whether jobs may put themselves back into the queue; false: submit chains
    directives: Annotated[tuple[Directive, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)] = ()
    setup: Line | None = None               # a line of shell for every node, before anything else
    venv: Line | None = None                # a virtual environment to activate
    container: Line | None = None           # options of srun: Enroot with Pyxis
    prefix: Line | None = None              # words before python3: Apptainer
    network_interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,-]+$")] | None = None   # for NCCL's sockets and gloo
    gpu: Annotated[str, AfterValidator(_gpu)] | None = None     # what the plan takes its memory and peak from
    price_per_gpu_hour: NotNegative | None = None               # in any currency


def limit_hours(site: Site) -> float:
    """The time limit in hours."""
    days, _, clock = site.time.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def find_site(given: Path | None) -> tuple[Site, Path | None]:
    """The site of `given`, else of ./slurm/cluster.yaml, else of the user's own file; else the defaults.  Raises ClusterError."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "vitscale" / "cluster.yaml"
    path = given or next((path for path in (FILE, home) if path.is_file()), None)
    if path is None:
        return Site(), None
    try:
        return check_section(Site, read_values(path, "partition: ..., gpus_per_node: ..."), str(path)), path
    except RecipeError as error:
        raise ClusterError(str(error)) from None
