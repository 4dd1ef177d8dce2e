"""How much memory one rank needs, to first order, and the micro-batch that fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.plan.anatomy import Unit
from vitscale.plan.families import anatomy_of
from vitscale.recipe.check import default_group
from vitscale.recipe.schema import Recipe

USABLE = 0.85       # of a device's memory; the rest is left to the context, communication buffers and fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a training step."""

    weights: int        # what is computed with, the parts gathered for the moment included
    gradients: int
    optimizer: int      # two moments (Lion, SGD: one), and with ZeRO in bf16 the fp32 master copy, as Rajbhandari et al. 2020 count it
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _element(recipe: Recipe) -> int:
    """Bytes of a number that is computed with."""
    return 2 if recipe.parallel.precision == "bf16" else 4


def _autocast(recipe: Recipe) -> bool:
    """DDP keeps fp32 weights and casts op by op; FSDP2 and DeepSpeed compute on bf16 copies."""
    return recipe.parallel.precision == "bf16" and recipe.parallel.engine in ("ddp", "accelerate")


def unit_bytes(recipe: Recipe, unit: Unit) -> int:
    """Bytes that one block keeps of one image for its backward pass, nothing recomputed.  Autocast keeps the norms' inputs in fp32."""
    element = _element(recipe)
    return element * unit.kept + (4 - element) * (unit.normed if _autocast(recipe) else 0) + 4 * unit.kept_fp32 + unit.mask_bytes


def _kept_bytes(recipe: Recipe, units: Sequence[Unit]) -> int:
    """Bytes that all blocks keep of one image, with what the recomputation brings back for the largest of them at its time."""
    element, parallel = _element(recipe), recipe.parallel
    full = [unit_bytes(recipe, unit) for unit in units]
    if parallel.recompute == "none":
        return sum(full)
    if parallel.recompute == "blocks":                              # blocks 0, k, 2 k, ... keep their input alone
        again = range(0, len(units), parallel.recompute_every)
        kept = sum(element * units[at].stream if at in again else full[at] for at in range(len(units)))
        return kept + max(full[at] for at in again)
    return sum(min(element * unit.outputs + 4 * unit.kept_fp32, one) for unit, one in zip(units, full, strict=True)) + max(full)


def activation_bytes(recipe: Recipe) -> int:
    """Bytes of one image at the start of the backward pass: the peak.  Proportional to the micro-batch."""
    model, parts, element = recipe.model, anatomy_of(recipe.model, recipe.objective), _element(recipe)
    image = model.channels * model.image**2 * (4 if element == 4 else 4 + element)      # the batch, and its cast copy
    norm = parts.normed * (4 if _autocast(recipe) else element)
    outputs = 2 * 4 * parts.outputs                                 # fp32 logits and log-probabilities; pixels and their differences
    in_flight = element * parts.units[-1].in_flight                 # of the block being differentiated
    return image + parts.mask_bytes + _kept_bytes(recipe, parts.units) + norm + (parts.stem + parts.pooled) * element + outputs + in_flight


def estimate(recipe: Recipe, world_size: int, micro_batch: int) -> Memory:
    """Bytes of one of `world_size` ranks that runs `micro_batch` images at a time.  Raises RecipeError.

    Model states after Rajbhandari et al. 2020 (ZeRO), sections 3.1 and 5, with n parameters and w ranks: fp32 everywhere but for
    bf16's computing copies; `fsdp` shards everything and gathers the outer parameters and two blocks (one used, one fetched
    ahead); `zero` shards the optimizer (1), gradients (2), weights (3).  `accelerate` is taken for DDP, its least frugal form.
    With parallel.tensor (Shoeybi et al. 2019, section 3) a block is gathered in part and what stands outside the blocks is sharded over
    fewer ranks; the activations that it saves are not counted, so that its estimate is an upper bound.
    Communication buckets are not counted; DDP's gradients are taken to be views of its buckets.
    """
    parts = anatomy_of(recipe.model, recipe.objective)
    n, blocks = sum(parts.params.values()), [unit.params for unit in parts.units]
    block, outer = max(blocks), n - sum(blocks)
    parallel, element = recipe.parallel, _element(recipe)
    gathered = outer + max(sum(blocks[at:at + 2]) for at in range(len(blocks))) // parallel.tensor
    n += (parallel.tensor - 1) * outer      # each rank that shares a block's matrices holds these for itself
    block //= parallel.tensor
    moments = n * (4 if recipe.optim.name in ("lion", "sgd") else 8)

    def share(num_bytes: int) -> int:
        return _ceil(num_bytes, world_size)

    if parallel.engine == "fsdp":
        weights = share(4 * n) + element * gathered
        gradients = share(4 * n) + (element + 4) * max(block, outer)        # one unit's, and its fp32 copy on the way to its shards
        optimizer = share(moments)
    elif parallel.engine == "zero":
        master = element == 2
        weights = share(element * n) + element * gathered if parallel.zero_stage == 3 else element * n
        gradients = element * n if parallel.zero_stage == 1 else share(element * n) + element * max(block, outer)
        gradients += share(4 * n) if master else 0                          # the fp32 copy that the update reads
        optimizer = 0 if parallel.zero_offload else share(moments + (4 * n if master else 0))
    else:
        weights = 4 * n + (2 * n if _autocast(recipe) else 0)
        gradients, optimizer = 4 * n, moments
    average = 0 if recipe.ema is None else share(4 * n) if parallel.engine == "fsdp" else 4 * n
    return Memory(weights, gradients, optimizer, average, micro_batch * activation_bytes(recipe))


def fitting_micro_batch(recipe: Recipe, world_size: int, device_bytes: int, local_share: int) -> int:
    """The micro-batch with the fewest equal accumulation steps whose estimate stays within USABLE of `device_bytes`.

    `local_share`: samples of the global batch that one rank takes.  k steps take ceil(local_share / k) each, rounded up to a
    multiple of the recipe's group; the smallest k that fits is taken.  Raises RecipeError, with what to change, if none does.
    """
    if local_share < 1 or world_size < 1:
        raise ValueError(f"wants at least one sample and one rank, got local_share {local_share}, world_size {world_size}")
    group = default_group(recipe)
    budget = int(USABLE * device_bytes)
    states = estimate(recipe, world_size, 0).total
    affordable = (budget - states) // activation_bytes(recipe) // group * group
    if affordable < group:
        raise RecipeError(_too_big(recipe, estimate(recipe, world_size, group), group, device_bytes))
    steps = _ceil(local_share, affordable)
    return _ceil(_ceil(local_share, steps), group) * group


def _too_big(recipe: Recipe, memory: Memory, group: int, device_bytes: int) -> str:
    """What was wanted, what there is, and the keys that would help, those that help most first."""
    parallel = recipe.parallel
    ways = []
    if parallel.engine in ("ddp", "accelerate"):
        ways.append("parallel.engine=fsdp")
    elif parallel.engine == "zero" and parallel.zero_stage < 3:
        ways.append("parallel.zero_stage=3")
    if parallel.recompute != "blocks" or parallel.recompute_every > 1:
        ways.append("parallel.recompute=blocks with recompute_every=1")
    if parallel.precision == "fp32":
        ways.append("parallel.precision=bf16")
    if parallel.engine == "zero" and not parallel.zero_offload:
        ways.append("parallel.zero_offload=true")
    if parallel.engine in ("fsdp", "zero"):
        ways.append("more devices")
    ways.append("a smaller model.size or model.image")
    images = "1 image" if group == 1 else f"{group} images (data.group)"
    return (
        f"micro_batch: {images} at a time would need {memory.total / 2**30:.2f} GiB per device"
        f" ({(memory.total - memory.activations) / 2**30:.2f} of them for weights, gradients and optimizer);"
        f" {USABLE:.0%} of {device_bytes / 2**30:.2f} GiB is to be had. Try {', or '.join(ways)}"
    )
