"""Stochastic depth: which residual branches are left out, and how the others make up for it.  Draws nothing at random."""

import torch
from torch import Tensor, nn


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


class DropPath(nn.Module):
    """add_branch as the module that ported code looks for: tokens + drop_path(branch, keep).

    Elsewhere a module of this name draws which samples to drop; here that is told, as everything random is.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, keep: Tensor | None = None) -> Tensor:
        """branch (B, ..., D), keep (B,) of 1.0 or 0.0 -> the branch, scaled by 1 / (1 - rate), or 0.  In evaluation the branch itself.

        Raises ValueError in training without `keep`, where the others would have dropped something.
        """
        if not self.training or not self.rate:
            return branch
        if keep is None:
            raise ValueError(f"nothing is drawn here: in training at rate {self.rate:g} give keep, 1.0 or 0.0 for each sample, "
                             "for example torch.rand(B) >= rate as floats")
        return add_branch(torch.zeros_like(branch), branch, keep, self.rate)
