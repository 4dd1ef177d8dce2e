"""How much memory one rank needs, to first order, and the micro-batch that fits."""

from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.plan.params import params_by_component
from vitscale.plan.sizes import num_tokens, shape_of
from vitscale.recipe.check import default_group
from vitscale.recipe.schema import Recipe

USABLE = 0.85       # of a device's memory; the rest is left to the context, communication buffers and fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a training step."""

    weights: int        # what is computed with, the parts gathered for the moment included
    gradients: int
    optimizer: int      # AdamW's two moments, and with ZeRO in bf16 the fp32 master copy, as Rajbhandari et al. 2020 count it
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


def block_bytes(recipe: Recipe) -> int:
    """Bytes that one block keeps of one image for its backward pass, nothing recomputed.

    Korthikanti et al. 2022 (Reducing activation recomputation in large transformer models, section 4.1) count per token and layer
    34 D + 5 N H bytes in 16 bits.  Flash attention never stores the N x N terms but one fp32 log-sum-exp per head; dropout masks
    (1 byte each, two of D) are there only with dropout; the MLP is M wide, not 4 D.  In numbers of `e` bytes per token that leaves
    norm inputs 2 D, qkv input D, q, k, v 3 D, attention output D, MLP input D, GELU input and output 2 M: e (8 D + 2 M) + 4 H.
    LayerScale keeps its two inputs, 2 D.  Autocast keeps the norms' inputs in fp32.
    """
    shape, element = shape_of(recipe.model), _element(recipe)
    per_token = element * (8 * shape.width + 2 * shape.mlp) + 4 * shape.heads
    if recipe.model.layer_scale is not None:
        per_token += element * 2 * shape.width
    if recipe.model.dropout:
        per_token += 2 * shape.width
    if _autocast(recipe):
        per_token += (4 - element) * 2 * shape.width
    return num_tokens(recipe.model) * per_token


def _kept_bytes(recipe: Recipe) -> int:
    """Bytes that all blocks keep of one image, with what the recomputation brings back for one block at a time."""
    shape, element, tokens = shape_of(recipe.model), _element(recipe), num_tokens(recipe.model)
    full, width = block_bytes(recipe), shape.width
    if recipe.parallel.recompute == "none":
        return shape.depth * full
    if recipe.parallel.recompute == "blocks":                       # a recomputed block keeps its input alone
        recomputed = _ceil(shape.depth, recipe.parallel.recompute_every)     # blocks 0, k, 2 k, ...
        return (shape.depth - recomputed) * full + recomputed * tokens * element * width + (full if recomputed else 0)
    outputs = tokens * (element * (7 * width + shape.mlp) + 4 * shape.heads)    # input; qkv 3, attention, proj, fc2; fc1
    return shape.depth * min(outputs, full) + full


def activation_bytes(recipe: Recipe) -> int:
    """Bytes of one image at the start of the backward pass: the peak.  Proportional to the micro-batch."""
    model, shape, element = recipe.model, shape_of(recipe.model), _element(recipe)
    stream = num_tokens(model) * shape.width                        # numbers in the residual stream
    image = model.channels * model.image**2 * (4 if element == 4 else 4 + element)      # the batch, and its cast copy
    norm = stream * (4 if _autocast(recipe) else element)
    pool = 3 * stream * element if model.pool == "attention" else 0                     # keys and values, and what they came from
    mask = stream if model.dropout else 0
    logits = 2 * 4 * model.classes                                  # fp32 logits and log-probabilities
    in_flight = 2 * num_tokens(model) * shape.mlp * element         # gradients inside the MLP of the block being differentiated
    return image + mask + _kept_bytes(recipe) + norm + pool + logits + in_flight


def estimate(recipe: Recipe, world_size: int, micro_batch: int) -> Memory:
    """Bytes of one of `world_size` ranks that runs `micro_batch` images at a time.  Raises RecipeError.

    Model states after Rajbhandari et al. 2020 (ZeRO), sections 3.1 and 5, with n parameters and w ranks: fp32 everywhere but for
    bf16's computing copies; `fsdp` shards everything and gathers the outer parameters and two blocks (one used, one fetched
    ahead); `zero` shards the optimizer (1), gradients (2), weights (3).  `accelerate` is taken for DDP, its least frugal form.
    Communication buckets are not counted; DDP's gradients are taken to be views of its buckets.
    """
    parts = params_by_component(recipe.model)
    depth = shape_of(recipe.model).depth
    n = sum(parts.values())
    final_norm = 2 * shape_of(recipe.model).width
    blocks = parts["attention"] + parts["mlp"] + parts["norms"] - final_norm + parts["layer_scale"]
    block, outer = blocks // depth, n - blocks
    gathered = outer + min(depth, 2) * block
    parallel, element = recipe.parallel, _element(recipe)

    def share(num_bytes: int) -> int:
        return _ceil(num_bytes, world_size)

    if parallel.engine == "fsdp":
        weights = share(4 * n) + element * gathered
        gradients = share(4 * n) + (element + 4) * max(block, outer)        # one unit's, and its fp32 copy on the way to its shards
        optimizer = share(8 * n)
    elif parallel.engine == "zero":
        master = element == 2
        weights = share(element * n) + element * gathered if parallel.zero_stage == 3 else element * n
        gradients = element * n if parallel.zero_stage == 1 else share(element * n) + element * max(block, outer)
        gradients += share(4 * n) if master else 0                          # the fp32 copy that the update reads
        optimizer = 0 if parallel.zero_offload else share((12 if master else 8) * n)
    else:
        weights = 4 * n + (2 * n if _autocast(recipe) else 0)
        gradients, optimizer = 4 * n, 8 * n
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
