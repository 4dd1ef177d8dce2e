"""The axes of a world: into which groups a recipe divides its ranks, and where among them each rank stands.  Pure: knows no torch.

Ranks are numbered node by node.  The last axis varies fastest, so that the ranks which exchange most are neighbours:

    replicate   groups of ranks that hold the whole state each, and exchange gradients alone (Zhao et al. 2023, section 3.2.2: HSDP)
    shard       the ranks of a group, over which parameters, gradients and the optimizer's state are sharded
    tensor      ranks that share each block's matrices (Shoeybi et al. 2019, Megatron-LM), and so are given the same samples

A further axis is a further field of Axes, in its place, and a key of `parallel` of the same name; what it goes with, REFUSALS says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vitscale.counts import plural
from vitscale.errors import RecipeError
from vitscale.recipe.objectives import Classification
from vitscale.recipe.schema import ENGINES, Parallel, Recipe, Vit


def _axis(own_samples: bool, cuts: bool = False) -> Any:
    """`own_samples`: ranks along this axis are given other samples than their neighbours.  `cuts`: along it each block's parameters are cut
    before they are sharded; along another that has no samples of its own they are sharded as along `shard`."""
    return field(default=1, metadata={"own_samples": own_samples, "cuts": cuts})


@dataclass(frozen=True)
class Axes:
    """The number of ranks along each axis, the outermost first."""

    replicate: int = _axis(own_samples=True)
    shard: int = _axis(own_samples=True)
    tensor: int = _axis(own_samples=False, cuts=True)

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
        return math.prod(getattr(self, name) for name in OWN_SAMPLES)

    @property
    def same_size(self) -> int:
        """How many ranks are given the same samples."""
        return self.size // self.data_size

    @property
    def copies(self) -> int:
        """How many times the state is held."""
        return self.data_size // self.shard

    @property
    def copy_size(self) -> int:
        """How many ranks hold one copy of the state between them."""
        return self.size // self.copies

    @property
    def cut_size(self) -> int:
        """How many ranks hold one block's matrices between them before these are sharded."""
        return math.prod(getattr(self, name) for name in CUTS)

    @property
    def shards(self) -> int:
        """Over how many ranks a parameter, cut or whole, is sharded."""
        return self.copy_size // self.cut_size

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
        for name in OWN_SAMPLES:
            number = number * getattr(self, name) + place[name]
        return number

    def leads(self, rank: int) -> bool:
        """Whether a rank answers for its samples; the others that are given the same ones keep silent."""
        return not any(place for name, place in self.at(rank).items() if name in SAME_SAMPLES)

    def own_part(self, amount: float) -> float:
        """Of a block's numbers, or of the work of computing it, what one of the ranks has that share its matrices."""
        return amount / self.cut_size


ALONE = Axes()
OWN_SAMPLES = tuple(axis.name for axis in fields(Axes) if axis.metadata["own_samples"])
SAME_SAMPLES = tuple(axis.name for axis in fields(Axes) if not axis.metadata["own_samples"])      # ranks of one node
CUTS = tuple(axis.name for axis in fields(Axes) if axis.metadata["cuts"])


def same_samples(parallel: Parallel) -> dict[str, int]:
    """Of the axes along which ranks are given the same samples, those with more than one rank."""
    return {name: size for name in SAME_SAMPLES if (size := getattr(parallel, name)) > 1}


def axes_of(parallel: Parallel, size: int, local_size: int | None = None) -> Axes:
    """How `size` ranks, `local_size` of them on each node (None: all on one), are divided.  Raises RecipeError where they are not whole
    groups.  Of accelerate, whose own configuration decides, as if every rank held everything."""
    local_size = local_size or size
    if ENGINES[parallel.engine] != "axes":
        return Axes(shard=size) if ENGINES[parallel.engine] == "shares" else Axes(replicate=size)
    inner = same_samples(parallel)
    together, keys = math.prod(inner.values()), " x ".join(f"parallel.{name}" for name in inner)
    for count, what in ((size, "of the run"), (local_size, "of a node")):
        if count % together:
            raise RecipeError(f"{keys}: {together} does not divide the {plural(count, 'rank')} {what}; start a multiple of {together} "
                              f"ranks on each node, or set {keys} to a divisor of {count}")
    left, outer, each = size // together, {}, f" in groups of {keys} {together}" if inner else ""
    for name in (name for name in OWN_SAMPLES if name != "shard"):
        count = getattr(parallel, name) or 1
        if count == "nodes":
            if size % local_size:
                raise RecipeError(f"parallel.{name}: nodes wants as many ranks on each node; there are {size} in all and {local_size} "
                                  f"on one. Start as many on each, or set parallel.{name} to a number that divides them")
            count = size // local_size
        if left % count:
            raise RecipeError(f"parallel.{name}: {count} does not divide the {plural(size, 'rank')} of the run{each}; start a multiple of "
                              f"{count * size // left} ranks, or set parallel.{name} to a divisor of {left}")
        outer[name], left = count, left // count
    return Axes(**outer, shard=left, **inner)


def check_nodes(places: Sequence[tuple[int, int]]) -> None:
    """Of every rank in order (local rank, ranks on its node).  Raises RecipeError where they do not lie node by node, as many on each."""
    sizes = sorted({local_size for _, local_size in places})
    if len(sizes) > 1:
        raise RecipeError(f"parallel.replicate: nodes wants as many ranks on each node; here are nodes of "
                          f"{' and of '.join(map(str, sizes))}. Start as many on each, or set parallel.replicate to a number")
    if len(places) % sizes[0] or [local_rank for local_rank, _ in places] != [rank % sizes[0] for rank in range(len(places))]:
        raise RecipeError("parallel.replicate: nodes wants ranks that are numbered node by node; here they go round the nodes. With srun: "
                          "--distribution=block; or set parallel.replicate to a number")


_ELSEWHERE = {"zero": "whose zero_stage says what is sharded, over all ranks", "accelerate": "which its own configuration file sets up"}


def axis_contradictions(recipe: Recipe) -> list[tuple[str, str]]:
    """(dotted key, sentence) for what parallel's axes do not go with.  That ranks are whole groups, axes_of sees to."""
    parallel = recipe.parallel
    if ENGINES[parallel.engine] == "axes":
        return [(f"parallel.{name}", why) for name in same_samples(parallel) if name in REFUSALS and (why := REFUSALS[name](recipe))]
    keys = {name: (None, 1) for name in Axes().sizes if name != "shard"} | {"gather": ("each",)}
    elsewhere = _ELSEWHERE.get(parallel.engine, "which keeps the whole model on every rank")
    return [(f"parallel.{key}", f"belongs to parallel.engine fsdp, not to {parallel.engine}, {elsewhere}")
            for key, plain in keys.items() if getattr(parallel, key) not in plain]


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
    sound = {"attention": "full", "qk_norm": False, "gated": False, "scale_attn_norm": False, "scale_mlp_norm": False,
             "post_norm": False}
    odd = [f"model.{key} {getattr(model, key)}" for key, value in sound.items() if getattr(model, key) != value]
    odd += ["model.position relative"] if model.position == "relative" else []
    odd += ["model.rope_type mixed"] if model.rope_type == "mixed" else []
    return f"cuts plain blocks alone, and does not go with {', '.join(odd)}" if odd else ""


# axis -> the sentence for what it does not go with, "" where it goes with everything
REFUSALS: dict[str, Callable[[Recipe], str]] = {
    "tensor": _uncut,
}
