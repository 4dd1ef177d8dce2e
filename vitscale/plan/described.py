"""A device that the hardware table lacks, from a file that somebody wrote."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vitscale.plan.hardware import HOSTS, Device
from vitscale.recipe.fields import Count, Positive, Section
from vitscale.recipe.load import check_section, read_values

_EXAMPLE = "name: RTX 2080 Ti, memory_gb: 11, fp32_tflops: 13.4"


class Described(Section):
    """What its data sheet says, without structured sparsity.  What is left out is not known, and so is what follows from it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}$")]
    memory_gb: Positive | None = None               # 1 GB = 1e9 bytes
    memory_bandwidth_gb_s: Positive | None = None
    bf16_tflops: Positive | None = None             # of the matrix units, dense, with sums in fp32
    fp32_tflops: Positive | None = None             # not TF32
    link_gb_s: Positive | None = None               # to the other devices of its node, each way
    gpus_per_node: Count = HOSTS["PCIe server"].devices
    cores_per_node: Count = HOSTS["PCIe server"].cores
    network_gbit_s: Positive = 8e-9 * HOSTS["PCIe server"].network_bandwidth        # of a node to the others, each way
    watts_per_node: Positive = HOSTS["PCIe server"].watts


def read_described(path: Path) -> tuple[str, Device]:
    """(name, device).  Raises RecipeError with every mistake of the file."""
    found = check_section(Described, read_values(path, _EXAMPLE), f"--gpu {path}")

    def times(value: float | None, unit: float) -> float | None:
        return None if value is None else value * unit

    host = replace(HOSTS["PCIe server"], cores=found.cores_per_node, devices=found.gpus_per_node, watts=found.watts_per_node,
                   network_bandwidth=found.network_gbit_s * 1e9 / 8, source=str(path))
    memory = None if found.memory_gb is None else round(found.memory_gb * 1e9)
    return found.name, Device(times(found.bf16_tflops, 1e12), times(found.fp32_tflops, 1e12), memory,
                              times(found.memory_bandwidth_gb_s, 1e9), times(found.link_gb_s, 1e9), host, str(path))
