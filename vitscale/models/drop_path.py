"""Stochastic depth: which residual branches are left out, and how the others make up for it.  Draws nothing at random."""

import torch
from torch import Tensor


def drop_rates(depth: int, last: float, schedule: str = "linear") -> tuple[float, ...]:
    """Rates of the 2 L branches: `last` in all blocks (constant), or rising linearly from 0 in the first block to it in the last (Huang et
    al. 2016, section 4).

    Row 2 l is the attention of block l, row 2 l + 1 its MLP; both have the block's rate.  A single block has rate 0.
    """
    rising = [last * block / (depth - 1) if depth > 1 else 0.0 for block in range(depth)]
    rates = [last] * depth if schedule == "constant" else rising
    return tuple(rate for rate in rates for _ in range(2))


def add_branch(stream: Tensor, branch: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """stream + branch, or where `keep` (B,) is 0 the stream alone; kept branches are scaled by 1 / (1 - rate).  All (B, ..., D).

    So the expectation over keep ~ Bernoulli(1 - rate) is stream + branch.  `keep` None: nothing is dropped and nothing scaled.
    """
    if keep is None:
        return stream + branch
    keep = keep.unflatten(0, (-1, *[1] * (stream.ndim - 1)))
    if torch.compiler.is_compiling():
        # a number would be built into the graph: one graph for each block's rate, and past eight of them none at all
        scale = keep.float() * (1.0 / (1.0 - rate))
        return (stream.float() + branch.float() * scale).to(stream.dtype)
    # the scale goes in as a number, not through bf16, where 1 / (1 - rate) would be off by up to 0.4 %
    return torch.addcmul(stream, branch, keep.to(stream.dtype), value=1.0 / (1.0 - rate))
