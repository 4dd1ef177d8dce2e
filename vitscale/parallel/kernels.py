"""Which kernels a run takes: those the recipe asks for, its engine leaves room for, and the device of every rank computes right."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitscale.kernels.check import wrong
from vitscale.kernels.parts import PARTS, WIDEST, turn_on_, why_none, widths
from vitscale.parallel.world import World
from vitscale.recipe import Parallel

log = logging.getLogger(__name__)
_BY_LAYER = "gives each layer its parameters for its own forward pass alone"


@dataclass(frozen=True)
class Kernels:
    """What runs, and why not more."""

    parts: frozenset[str] = frozenset()
    why: str = ""           # what is left to torch, and for which reason
    failed: bool = False    # a kernel that should run did not compute right

    @property
    def names(self) -> str:
        return ", ".join(part for part in PARTS if part in self.parts) or "torch's own"


def turn_on_chosen_(model: nn.Module, parallel: Parallel, world: World) -> None:
    """Let the model's modules use them, and say in one line which they are.  Collective."""
    choice = chosen(parallel, world, tuple(widths(model)))
    turn_on_(model, choice.parts)
    (log.warning if choice.failed else log.info)("kernels: %s%s", choice.names, f" ({choice.why})" if choice.why else "")


def chosen(parallel: Parallel, world: World, rows: Sequence[int] = (768,)) -> Kernels:
    """For a model whose norms have rows of these widths.  Collective: all ranks take the same."""
    if parallel.kernels == "torch":
        return Kernels(why="parallel.kernels is torch")
    dtype = torch.bfloat16 if parallel.precision == "bf16" else torch.float32
    parameters = dtype if parallel.engine in ("fsdp", "zero") else torch.float32       # the others have autocast
    tried = tuple(sorted({width for width in rows if width <= WIDEST}))
    reason = why_none(world.device)
    own = reason, {} if reason else wrong(world.device, dtype, parameters, tried)
    (parts, why), failed = _allowed(parallel), set[str]()
    for rank, (reason, failures) in enumerate(world.broadcast(world.gather(own))):
        where = f" on rank {rank}" if world.size > 1 else ""
        if reason is not None:
            return Kernels(why=f"{reason}{where}")
        why += [f"{part} is left to torch: its kernel{where} {failure}" for part, failure in failures.items()]
        failed |= failures.keys()
    why += [f"rows of {width} are left to torch: kernels take {WIDEST} at most" for width in sorted(set(rows) - set(tried))]
    return Kernels(parts - failed, "; ".join(why), bool(failed))


def _allowed(parallel: Parallel) -> tuple[frozenset[str], list[str]]:
    """What the engine leaves room for, and why no more."""
    if parallel.engine == "accelerate" or (parallel.engine == "zero" and parallel.zero_stage == 3):
        engine = "DeepSpeed's stage 3" if parallel.engine == "zero" else "accelerate, as it may be configured,"
        return frozenset({"gelu", "pack"}), [f"norms and biases' gradients are left to torch: {engine} {_BY_LAYER}"]
    if parallel.tensor > 1:
        return frozenset(PARTS) - {"bias"}, ["biases' gradients are left to torch: parallel.tensor cuts the layers"]
    return frozenset(PARTS), []
