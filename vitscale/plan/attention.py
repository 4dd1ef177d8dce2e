"""What an attention costs between its two linear layers.  FLOPs are those that torch counts, exactly."""

from dataclasses import dataclass

from vitscale.recipe.schema import Vit
from vitscale.shapes.vit import Shape, grid, num_placed


@dataclass(frozen=True)
class Mixing:
    """One block's, for one image."""

    flops: int
    kept: int           # numbers kept for the backward pass in the computing precision: queries, keys, values to the projection's input
    kept_fp32: int      # log-sum-exps
    outputs: int        # of `kept`, outputs of matrix products and of attention


@dataclass(frozen=True)
class Groups:
    """Queries that look at the keys of their own group: what models/attention_pattern.py makes of the patches."""

    heads: int
    count: int
    queries: int        # of a group
    keys: int           # of a group; those that stand before all patches are among them


def groups_of(model: Vit, shape: Shape) -> list[Groups]:
    """How local, axial and sparse attention cut the patches; filled up where the cut is not even."""
    side, before = grid(model), num_placed(model) + model.registers
    if model.attention == "local":
        windows = (-(-side // model.window)) ** 2
        return [Groups(shape.heads, windows, model.window**2, before + (model.window + 2 * model.halo) ** 2)]
    if model.attention == "axial":
        return [Groups(heads, side, side, before + side) for heads in ((shape.heads + 1) // 2, shape.heads // 2)]
    blocks = -(-side**2 // model.sparse_block)
    seen = min(blocks, 3 + model.sparse_random)
    return [Groups(shape.heads, blocks, model.sparse_block, before + seen * model.sparse_block)]


def mixing(model: Vit, shape: Shape, tokens: int) -> Mixing:
    """`tokens` go through; of an attention other than `full` and `linear` these are all there are."""
    width, heads = shape.width, shape.heads
    if model.attention == "full":
        return Mixing(flops=2 * (2 * tokens * tokens * width), kept=tokens * 4 * width, kept_fp32=tokens * heads, outputs=tokens * width)
    if model.attention == "linear":
        each = width // heads
        summed, mixed = heads * each * (each + 1), tokens * heads * (each + 1)      # a column more for the weights' sum
        # queries, keys, values; of queries and keys the two parts of elu + 1 and their sum; values; the products; their quotient
        kept = tokens * 3 * width + 6 * tokens * width + mixed + summed + mixed + tokens * width
        return Mixing(flops=2 * (2 * tokens * width * (each + 1)), kept=kept, kept_fp32=0, outputs=summed + mixed)
    before = num_placed(model) + model.registers
    flops, kept = 2 * (2 * before * tokens * width), tokens * width                 # those before look at all
    if before or model.qk_norm:
        kept += 3 * tokens * width + before * width
    lse, outputs = before * heads, before * width
    for part in groups_of(model, shape):
        each, queries = part.heads * width // heads, part.count * part.queries
        flops += 2 * (2 * queries * part.keys * each)
        kept += 2 * queries * each + 2 * part.count * part.keys * each              # queries and what they saw; keys and values
        lse, outputs = lse + queries * part.heads, outputs + queries * each
    return Mixing(flops=flops, kept=kept, kept_fp32=lse, outputs=outputs)
