"""The axes of a world: into which groups a recipe divides its ranks, and where among them each rank stands.  Pure: knows no torch.

Ranks are numbered node by node.  The last axis varies fastest, so that the ranks which exchange most are neighbours:

    replicate   groups of ranks that hold the whole state each, and exchange gradients alone (Zhao et al. 2023, section 3.2.2: HSDP)
    shard       the ranks of a group, over which parameters, gradients and the optimizer's state are sharded
    tensor      ranks that share each block's matrices (Shoeybi et al. 2019, Megatron-LM), and so are given the same samples

A further axis is a further field of Axes, in its place; what it goes with, `axis_contradictions` says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vitscale.errors import RecipeError
from vitscale.recipe.objectives import Classification
from vitscale.recipe.schema import Parallel, Recipe, Vit


def _axis(own_samples: bool) -> Any:
    """`own_samples`: ranks along this axis are given other samples than their neighbours."""
    return field(default=1, metadata={"own_samples": own_samples})


@dataclass(frozen=True)
class Axes:
    """The number of ranks along each axis, the outermost first."""

    replicate: int = _axis(own_samples=True)
    shard: int = _axis(own_samples=True)
    tensor: int = _axis(own_samples=False)

    @property
    def sizes(self) -> dict[str, int]:
        """By name, the outermost first."""
        return {axis.name: getattr(self, axis.name) for axis in fields(self)}

    @property
    def size(self) -> int:
        """All ranks."""
        return math.prod(self.sizes.values())

    @property
    def data_size(self) -> int:
        """Into how many parts a global batch is divided."""
        return math.prod(getattr(self, name) for name in _own_samples())

    @property
    def copy_size(self) -> int:
        """How many ranks hold one copy of the state between them."""
        return self.size // self.replicate

    def at(self, rank: int) -> dict[str, int]:
        """A rank's place along each axis.  Raises ValueError for a rank that there is not."""
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} of {self.size}")
        place, left = {}, rank
        for name, size in reversed(self.sizes.items()):
            left, place[name] = divmod(left, size)
        return dict(reversed(place.items()))

    def data_rank(self, rank: int) -> int:
        """Whose part of the global batch a rank is given, 0 to data_size - 1."""
        place, number = self.at(rank), 0
        for name in _own_samples():
            number = number * getattr(self, name) + place[name]
        return number

    def leads(self, rank: int) -> bool:
        """Whether a rank answers for its samples; the others that are given the same ones keep silent."""
        return not any(place for name, place in self.at(rank).items() if name not in _own_samples())

    def own_part(self, amount: float) -> float:
        """Of a block's numbers, or of the work of computing it, what one of the ranks has that share its matrices."""
        return amount / self.tensor


ALONE = Axes()


def _own_samples() -> list[str]:
    return [axis.name for axis in fields(Axes) if axis.metadata["own_samples"]]


def axes_of(parallel: Parallel, size: int, local_size: int | None = None) -> Axes:
    """How `size` ranks, `local_size` of them on each node (None: all on one), are divided.  Raises RecipeError where they are not whole
    groups.  Of accelerate, whose own configuration decides, as if every rank held everything."""
    local_size = local_size or size
    if parallel.engine == "zero":
        return Axes(shard=size)
    if parallel.engine != "fsdp":
        return Axes(replicate=size)
    tensor, replicate = parallel.tensor, parallel.replicate or 1
    for count, what in ((size, "rank(s) of the run"), (local_size, "rank(s) of a node")):
        if count % tensor:
            raise RecipeError(f"parallel.tensor: {tensor} does not divide the {count} {what}; start a multiple of {tensor} ranks on each "
                              f"node, or set parallel.tensor to a divisor of {count}")
    if replicate == "nodes":
        if size % local_size:
            raise RecipeError(f"parallel.replicate: nodes wants as many ranks on each node; there are {size} in all and {local_size} "
                              "on one. Start as many on each, or set parallel.replicate to a number that divides them")
        replicate = size // local_size
    if size // tensor % replicate:
        each = f" in groups of parallel.tensor {tensor}" if tensor > 1 else ""
        raise RecipeError(f"parallel.replicate: {replicate} does not divide the {size} rank(s) of the run{each}; start a multiple of "
                          f"{replicate * tensor} ranks, or set parallel.replicate to a divisor of {size // tensor}")
    return Axes(replicate, size // tensor // replicate, tensor)


def check_nodes(places: Sequence[tuple[int, int]]) -> None:
    """Of every rank in order (local rank, ranks on its node).  Raises RecipeError where they do not lie node by node, as many on each."""
    sizes = sorted({local_size for _, local_size in places})
    if len(sizes) > 1:
        raise RecipeError(f"parallel.replicate: nodes wants as many ranks on each node; here are nodes of "
                          f"{' and of '.join(map(str, sizes))}. Start as many on each, or set parallel.replicate to a number")
    if len(places) % sizes[0] or [local_rank for local_rank, _ in places] != [rank % sizes[0] for rank in range(len(places))]:
        raise RecipeError("parallel.replicate: nodes wants ranks that are numbered node by node; here they go round the nodes. With srun: "
                          "--distribution=block; or set parallel.replicate to a number")


_ELSEWHERE = {"ddp": "which keeps the whole model on every rank", "zero": "whose zero_stage says what is sharded, over all ranks",
              "accelerate": "which its own configuration file sets up"}


def axis_contradictions(recipe: Recipe) -> list[tuple[str, str]]:
    """(dotted key, sentence) for what parallel's axes do not go with.  That ranks are whole groups, axes_of sees to."""
    parallel, found = recipe.parallel, []
    for key, plain in (("replicate", (None, 1)), ("gather", ("each",)), ("tensor", (1,))):
        if getattr(parallel, key) not in plain and parallel.engine != "fsdp":
            found.append((f"parallel.{key}", f"belongs to parallel.engine fsdp, not to {parallel.engine}, {_ELSEWHERE[parallel.engine]}"))
    why = _uncut(recipe) if parallel.engine == "fsdp" and parallel.tensor > 1 else ""
    return [*found, ("parallel.tensor", why)] if why else found


def _uncut(recipe: Recipe) -> str:
    """What sharing each block's matrices does not go with; that it divides heads and MLP, check_tensor sees to."""
    model, parallel = recipe.model, recipe.parallel
    if parallel.compile:
        return "does not go with parallel.compile"
    if parallel.processes is not None and parallel.processes % parallel.tensor:
        return f"{parallel.tensor} does not divide parallel.processes {parallel.processes}"
    if not isinstance(model, Vit):
        return f"cuts the blocks of model.family vit and deit, not those of {model.family}"
    if not isinstance(recipe.objective, Classification):
        return f"goes with the objectives classification and distillation, not with {recipe.objective.name}"
    sound = {"attention": "full", "qk_norm": False, "gated": False, "scale_attn_norm": False, "scale_mlp_norm": False}
    odd = [f"model.{key} {getattr(model, key)}" for key, value in sound.items() if getattr(model, key) != value]
    odd += ["model.position relative"] if model.position == "relative" else []
    return f"cuts plain blocks alone, and does not go with {', '.join(odd)}" if odd else ""
