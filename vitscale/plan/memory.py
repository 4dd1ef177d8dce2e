"""How much memory one rank needs at the peak of a training step, part by part, and the micro-batch that fits."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate

from vitscale.errors import RecipeError
from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.plan.families import anatomy_of
from vitscale.recipe.axes import Axes, axes_of
from vitscale.recipe.check import default_group
from vitscale.recipe.schema import ENGINES, OPTIMIZERS, Recipe
from vitscale.recipe.views import num_values

USABLE = 0.9                    # of a device's memory; the rest is left to fragmentation
CONTEXT = 600 * 2**20           # bytes that CUDA, its kernels and cuBLAS's workspace hold.  An assumption, not measured
NCCL = 400 * 2**20              # bytes of NCCL's own buffers, where there is more than one rank.  An assumption, not measured
BUCKET = 500_000_000            # numbers of a reduction bucket of DeepSpeed's, its default, which parallel/zero.py leaves as it is
REUSE = 1_000_000_000           # gathered parameters that stage 3 keeps for their next use: DeepSpeed's default


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a training step."""

    weights: int        # what is computed with, the parts gathered for the moment included
    gradients: int      # none yet where the peak is at the start of the backward pass and they are not kept from step to step
    optimizer: int      # two moments (Lion, SGD: one), and with ZeRO in bf16 the fp32 master copy, as Rajbhandari et al. 2020 count it
    ema: int
    activations: int    # without attention's
    attention: int      # queries, keys, values, what came of them: N D each; the map of N^2 is never stored
    communication: int  # parameters fetched ahead, gradients on their way, DeepSpeed's buckets
    loader: int         # the micro-batch's images, and their cast copy
    context: int        # CUDA, cuBLAS, NCCL; 0 on a CPU

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _element(recipe: Recipe) -> int:
    """Bytes of a number that is computed with."""
    return 2 if recipe.parallel.precision == "bf16" else 4


def _autocast(recipe: Recipe) -> bool:
    """DDP keeps fp32 weights and casts op by op; FSDP2 and DeepSpeed compute on bf16 copies."""
    return recipe.parallel.precision == "bf16" and ENGINES[recipe.parallel.engine] == "copies"


def cached_anatomy(recipe: Recipe) -> Anatomy:
    """Of what the recipe trains: a search asks for the same one many times."""
    return _anatomy(recipe.model, recipe.objective, recipe.data.views)


_anatomy = lru_cache(maxsize=64)(anatomy_of)


def unit_bytes(recipe: Recipe, unit: Unit) -> int:
    """Bytes that one block keeps of one image for its backward pass, nothing recomputed.  Autocast keeps the norms' inputs in fp32."""
    element = _element(recipe)
    return element * unit.kept + (4 - element) * (unit.normed if _autocast(recipe) else 0) + 4 * unit.kept_fp32 + unit.mask_bytes


@dataclass(frozen=True)
class _Kept:
    """Bytes of one image that a block holds from forward to backward, and what recomputation brings back besides in its turn."""

    held: int
    again: int
    attention_held: int     # of these, attention's
    attention_again: int


def _kept(recipe: Recipe, first: bool, unit: Unit) -> _Kept:
    """`first`: of recompute_every blocks."""
    element, parallel = _element(recipe), recipe.parallel
    full, attention = unit_bytes(recipe, unit), element * unit.attention + 4 * unit.kept_fp32
    if parallel.recompute == "blocks" and first:                # blocks 0, k, 2 k, ... keep their input alone
        return _Kept(element * unit.stream, int((full - element * unit.stream) * unit.at_once), 0, int(attention * unit.at_once))
    if parallel.recompute == "selective":
        outputs = element * unit.outputs + 4 * unit.kept_fp32
        if outputs < full:
            mixed = min(element * unit.attention_outputs + 4 * unit.kept_fp32, attention)
            again = full - outputs + element * unit.spare
            return _Kept(outputs, int(again * unit.at_once), mixed, int((attention - mixed) * unit.at_once))
    return _Kept(full, 0, attention, 0)


def estimate(recipe: Recipe, world_size: int, micro_batch: int, micro_steps: int = 1, on_gpu: bool = True,
             local_size: int | None = None) -> Memory:
    """Bytes of one of `world_size` ranks that takes `micro_steps` micro-batches of `micro_batch` images a step.  `local_size`: ranks of a
    node; None: all.  Raises RecipeError.

    Model states after Rajbhandari et al. 2020 (ZeRO), sections 3.1 and 5, with n parameters and w ranks: fp32 everywhere but for
    bf16's computing copies.  `fsdp` shards everything, and gathers what stands outside the blocks for good and blocks one by one,
    the next one fetched ahead; where gradients are accumulated they stay whole on every rank until the last micro-step.  With
    parallel.replicate it shards over the ranks of a group; with parallel.gather once, blocks stay gathered until their last gradient.
    `zero` shards the optimizer (1), gradients (2), weights (3).  `accelerate` is taken for DDP, its least frugal form, as
    every engine is of which no more is known than that it keeps copies.  Along an axis of which no more is known blocks are sharded.
    The backward pass is gone through block by block, from the last to the first, with what is there while each is differentiated;
    the peak is the largest of these moments.
    With parallel.tensor (Shoeybi et al. 2019, section 3) a block is gathered in part and what stands outside the blocks is sharded over
    fewer ranks; the activations that it saves are not counted, so that its estimate is an upper bound, as it is for parallel.compile
    and for model.drop_path_group, whose left-out branches keep nothing.
    """
    axes = axes_of(recipe.parallel, world_size, local_size)
    return max(_moments(recipe, axes, micro_batch, micro_steps, on_gpu), key=lambda memory: memory.total)


def _moments(recipe: Recipe, axes: Axes, micro_batch: int, micro_steps: int, on_gpu: bool) -> list[Memory]:
    """While each block is differentiated, from the last to the first, and what comes before them."""
    parts = cached_anatomy(recipe)
    parallel, element = recipe.parallel, _element(recipe)
    states = _States(recipe, parts, axes, micro_steps, on_gpu)
    of: dict[tuple[Unit, bool], _Kept] = {}
    kept = []
    for number, one in enumerate(parts.units):
        first = number % parallel.recompute_every == 0
        kept.append(of.get((one, first)) or of.setdefault((one, first), _kept(recipe, first, one)))
    image = num_values(recipe)
    loader = micro_batch * image * (4 if element == 4 else 4 + element)
    norm = parts.normed * (4 if _autocast(recipe) else element)
    ends, outputs = parts.mask_bytes + norm + (parts.stem + parts.pooled) * element, 2 * 4 * parts.outputs  # logits and log-probabilities
    last = max((number for number, one in enumerate(parts.units) if one.of_weights), default=-1)
    rows = 4 * parts.rows * micro_batch * micro_steps
    context = (CONTEXT + (NCCL if axes.size > 1 else 0)) if on_gpu else 0
    held = list(accumulate((one.held for one in kept), initial=0))              # of the blocks before
    attention = list(accumulate((one.attention_held for one in kept), initial=0))
    found = []
    for turn in _turns(parts.units, parallel.recompute_every):
        unit, still, mixed, made = 0, held[turn], attention[turn], 0
        if turn < len(parts.units):
            unit = element * parts.units[turn].in_flight
            made = element * parts.units[turn].of_weights
            still += kept[turn].held + kept[turn].again
            mixed += kept[turn].attention_held + kept[turn].attention_again
        weights, gradients, communication = states.at(turn)
        asked = 0
        if turn == len(parts.units):        # a frozen network is asked between the forward pass and the backward pass
            weights, asked = weights + states.gathered, element * parts.frozen_passing
        told = 0 if turn < last else outputs        # of prototypes, that are many, they are gone before what made them is differentiated
        activations = rows + made + micro_batch * (ends + told + asked + still - mixed + unit)
        found.append(Memory(weights, gradients, states.optimizer, states.ema, activations, micro_batch * mixed, communication, loader,
                            context))
        if made:        # then the gradient of its weights goes back through their norm: itself, and four on the way
            made = 9 * made if _autocast(recipe) else 5 * made
            activations = rows + made + micro_batch * (ends + still - mixed)
            found.append(replace(found[-1], activations=activations, gradients=gradients - states.passing(turn)))
    return found


@lru_cache(maxsize=64)
def _turns(units: tuple[Unit, ...], every: int) -> list[int]:
    """Of blocks that are alike, those near the first and the last: between them all grows or shrinks evenly."""
    edges = [0, *(number for number in range(1, len(units)) if units[number] != units[number - 1]), len(units)]
    near = every + 1
    return sorted({turn for edge in edges for turn in range(max(edge - near, 0), min(edge + near, len(units)) + 1)})


class _States:
    """Bytes of weights, gradients and optimizer of one rank."""

    def __init__(self, recipe: Recipe, parts: Anatomy, axes: Axes, micro_steps: int, on_gpu: bool) -> None:
        parallel = recipe.parallel
        self.engine, self.stage, self.element = parallel.engine, parallel.zero_stage, _element(recipe)
        self.axes, self.accumulates, self.keeps = axes, micro_steps > 1, parallel.gather == "once"
        self.blocks = [int(axes.own_part(unit.params)) for unit in parts.units]
        whole = sum(parts.params.values())
        self.outer = whole - sum(unit.params for unit in parts.units)
        # each rank that shares a block's matrices holds what stands outside the blocks for itself
        self.n = whole + (axes.cut_size - 1) * self.outer
        self.filled = (axes.shards - 1) * parts.one_row if parallel.engine == "fsdp" else 0
        self.autocast = _autocast(recipe)
        self.bucket = BUCKET if on_gpu else min(BUCKET, self.n)     # a host hands out only what is written to
        self.before = list(accumulate(self.blocks, initial=0))
        self.again = [parallel.recompute != "none" and number % parallel.recompute_every == 0 for number in range(len(self.blocks))]
        self.remade = sum(block for block, again in zip(self.blocks, self.again, strict=True) if again)
        moments = self.n * 4 * OPTIMIZERS[recipe.optim.name]
        master = parallel.engine == "zero" and self.element == 2
        self.optimizer = 0 if parallel.zero_offload else self._share(moments + (4 * self.n if master else 0))
        self.ema = 0 if not recipe.keeps_average else self._share(4 * self.n)
        sharded = parallel.engine == "fsdp" and axes.copy_size > 1
        self.frozen = self._share(4 * parts.frozen) if sharded else 4 * parts.frozen
        self.gathered = 4 * (parts.frozen_unit + parts.frozen_outer) if sharded else 0      # of it, while it is asked

    def _share(self, num_bytes: int) -> int:
        """One rank's part of what is held once by the ranks of a group."""
        return _ceil(num_bytes, self.axes.copy_size)

    def passing(self, turn: int) -> int:
        """Of the gradients at(turn), that of a weight of the block which is not with the others yet."""
        if self.engine == "fsdp":
            return self.element * (self.blocks[turn] // 3)
        return 4 * (self.blocks[turn] // 3) if self.axes.size == 1 and not self.accumulates else 0

    def at(self, turn: int) -> tuple[int, int, int]:
        """Weights, gradients, communication while block `turn` is differentiated; past the last one: while the head is."""
        weights, gradients, communication = self._at(turn)
        return weights + self.frozen, gradients, communication

    def _at(self, turn: int) -> tuple[int, int, int]:
        block = self.blocks[turn] if turn < len(self.blocks) else 0
        ahead = self.blocks[turn - 1] if turn else 0
        before = self.blocks[turn + 1] if turn + 1 < len(self.blocks) else 0       # its gradients are on their way
        done = self.before[-1] - self.before[min(turn + 1, len(self.blocks))]
        if self.engine == "fsdp":
            # kept from the forward pass, the blocks before this one are still gathered; those after it too, if a next pass takes them
            gathered = (self.before[-1] if self.accumulates else self.before[min(turn + 1, len(self.blocks))]) if self.keeps else block
            return self._fsdp(block, gathered, 0 if self.keeps else ahead, before, done)
        if self.engine == "zero":
            return self._zero(block)
        copies = 2 * self.n if self.autocast else 0             # autocast's bf16 copies, which every layer keeps for its gradient
        if self.autocast and turn < len(self.blocks):           # but for those that are made again
            copies -= 2 * (self.remade - (block if self.again[turn] else 0))
        gradients = 4 * self.n                                  # views of DDP's buckets, which stay from step to step
        if self.axes.size == 1 and not self.accumulates:            # without others there are none: they come block by block
            gradients = 4 * (self.outer + done + block // 3)
        return 4 * self.n + copies, gradients, 0

    def _fsdp(self, block: int, gathered: int, ahead: int, before: int, done: int) -> tuple[int, int, int]:
        """A third of a block's parameters is the weight whose gradient is made while its activations are still there: fc2's."""
        element = self.element
        weights = self._share(4 * self.n) + element * (self.outer + self.filled + gathered)
        communication = element * ahead + (0 if self.accumulates else 4 * before)       # else it takes the place of the block's own
        gradients = element * (self.outer + block // 3)
        gradients += 4 * self.n if self.accumulates else self._share(4 * done)
        return weights, gradients, communication

    def _zero(self, block: int) -> tuple[int, int, int]:
        """As DeepSpeed 0.19 allocates by its defaults: buckets of 5e8 numbers however small the model, two of them where it overlaps
        exchange and computation (stages 1 and 2), one of fp32 in stage 3; stage 1 in bf16 accumulates whole gradients in fp32."""
        n, element = self.n, self.element
        bf16 = element == 2
        if self.stage == 3:
            weights = self._share(element * n) + element * min(n, self.outer + block + REUSE)
            gradients = self._share(element * n) + element * (self.outer + block // 3)
            return weights, gradients + (self._share(4 * n) if bf16 else 0), 4 * self.bucket
        whole = (element + 4) * n if bf16 else 4 * n
        if self.stage == 1:
            return element * n, whole, 0 if bf16 else 2 * element * self.bucket
        gradients = self._share(element * n) + element * max(block, self.outer) + (self._share(4 * n) if bf16 else 0)
        return element * n, gradients, 2 * element * self.bucket + (4 * min(n, BUCKET) if bf16 else 0)


def activation_bytes(recipe: Recipe) -> int:
    """Bytes of one more image at the peak, its own pixels included."""
    one, two = (estimate(recipe, 1, count, on_gpu=False) for count in (4096, 4097))
    return two.total - one.total


def fitting_micro_batch(recipe: Recipe, world_size: int, device_bytes: int, local_share: int, on_gpu: bool = True,
                        local_size: int | None = None) -> int:
    """The micro-batch with the fewest equal accumulation steps whose estimate stays within USABLE of `device_bytes`.

    `local_share`: samples of the global batch that one rank takes; `local_size`: ranks of a node, None: all.
    k steps take ceil(local_share / k) each, rounded up to a multiple of the recipe's group; the smallest k that fits is taken.  Raises
    RecipeError, with what to change, if none does.
    """
    if local_share < 1 or world_size < 1:
        raise ValueError(f"wants at least one sample and one rank, got local_share {local_share}, world_size {world_size}")
    group = default_group(recipe)
    budget = int(USABLE * device_bytes)
    sizes = possible_micro_batches(local_share, group)

    def fits(size: int) -> bool:
        return estimate(recipe, world_size, size, _ceil(local_share, size), on_gpu, local_size).total <= budget

    if fits(sizes[0]):          # no accumulation, for which whole gradients may have to stay
        return sizes[0]
    low, high = 1, len(sizes)   # sizes[low:] are to be searched; what is smaller takes less
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(sizes[middle]) else (middle + 1, high)
    if low == len(sizes):
        smallest = estimate(recipe, world_size, group, _ceil(local_share, group), on_gpu, local_size)
        raise RecipeError(_too_big(recipe, smallest, group, device_bytes))
    return sizes[low]


def possible_micro_batches(local_share: int, group: int) -> Sequence[int]:
    """Of 1, 2, 3, ... equal steps, from the largest to one group; each once."""
    found: dict[int, None] = {}
    steps = 1
    while True:
        size = _ceil(_ceil(local_share, steps), group) * group
        found[size] = None
        if size == group:
            return list(found)
        # the next number of steps that makes it smaller
        steps = max(steps + 1, _ceil(local_share, size - group))


def _too_big(recipe: Recipe, memory: Memory, group: int, device_bytes: int) -> str:
    """What was wanted, what there is, and the keys that would help, those that help most first."""
    parallel = recipe.parallel
    ways = []
    if ENGINES[parallel.engine] == "copies":
        ways.append("parallel.engine=fsdp")
    elif parallel.engine == "zero" and parallel.zero_stage < 3:
        ways.append("parallel.zero_stage=3")
    if parallel.gather == "once":
        ways.append("parallel.gather=each")
    if (parallel.replicate or 1) != 1:
        ways.append("parallel.replicate=null")
    if parallel.recompute != "blocks" or parallel.recompute_every > 1:
        ways.append("parallel.recompute=blocks with recompute_every=1")
    if parallel.precision == "fp32":
        ways.append("parallel.precision=bf16")
    if parallel.engine == "zero" and not parallel.zero_offload:
        ways.append("parallel.zero_offload=true")
    if ENGINES[parallel.engine] != "copies":
        ways.append("more devices")
    ways.append("a smaller model.size or model.image")
    images = "1 image" if group == 1 else f"{group} images (data.group)"
    states = memory.weights + memory.gradients + memory.optimizer + memory.ema
    return (
        f"micro_batch: {images} at a time would need {memory.total / 2**30:.2f} GiB per device"
        f" ({states / 2**30:.2f} of them for weights, gradients and optimizer);"
        f" {USABLE:.0%} of {device_bytes / 2**30:.2f} GiB is to be had. Try {', or '.join(ways)}"
    )
