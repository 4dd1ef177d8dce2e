"""Stochastic depth: which residual branches are left out, and how the others make up for it.  Draws nothing at random."""

import torch
from torch import Tensor, nn


def add_branch(stream: Tensor, branch: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """stream + branch, or where `keep` (B,) is 0 the stream alone; kept branches are scaled by 1 / (1 - rate).  All (B, ..., D).

    So the expectation over keep ~ Bernoulli(1 - rate) is stream + branch.  `keep` None: nothing is dropped and nothing scaled.
    Where `keep` (n,) is int64, branch is (n, ..., D), of these samples alone, and scaled by B / n: the expectation where each is as
    likely to be among them.
    """
    if keep is None:
        return stream + branch
    if keep.dtype == torch.int64:
        return stream.index_add(0, keep, branch.to(stream.dtype), alpha=stream.shape[0] / keep.shape[0])
    keep = keep.unflatten(0, (-1, *[1] * (stream.ndim - 1)))
    if torch.compiler.is_compiling():
        # a number would be built into the graph: one graph for each block's rate, and past eight of them none at all
        scale = keep.float() * (1.0 / (1.0 - rate))
        return (stream.float() + branch.float() * scale).to(stream.dtype)
    # the scale goes in as a number, not through bf16, where 1 / (1 - rate) would be off by up to 0.4 %
    return torch.addcmul(stream, branch, keep.to(stream.dtype), value=1.0 / (1.0 - rate))


def given(stream: Tensor, keep: Tensor | None) -> Tensor:
    """What a branch is computed from: stream (B, ..., D), or of int64 `keep` (n,) these samples alone."""
    return stream.index_select(0, keep) if keep is not None and keep.dtype == torch.int64 else stream


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
