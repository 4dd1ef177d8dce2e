"""The end of a residual branch and the LayerNorm behind it by one kernel, forward and backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.kernels.sums import to_parameter, wide
from vitscale.kernels.tiles import whole_rows


def add_plainly(stream: Tensor, branch: Tensor, scale: Tensor | None = None, share: Tensor | None = None) -> Tensor:
    """The formula: stream + branch (B, ..., D) times scale (D,), LayerScale's, times share (B,), stochastic depth's: 0, or 1 / (1 - rate).

    Who runs without kernels has it in models/vit.py (LayerScale) and models/drop_path.py (add_branch), whose every rounding is kept.
    """
    branch = branch if scale is None else branch * scale
    return stream + (branch if share is None else branch * share.unflatten(0, (-1, *[1] * (stream.ndim - 1))))


def norm_plainly(stream: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The formula of LayerNorm (Ba et al. 2016) over the last axis."""
    return F.layer_norm(stream, (stream.shape[-1],), weight, bias, eps)


def add(stream: Tensor, branch: Tensor, scale: Tensor | None = None, share: Tensor | None = None,
        branch_bias: Tensor | None = None) -> Tensor:
    """add_plainly by the kernel.  `branch_bias` (D,): what was added to make `branch`, without its gradient, which is found here."""
    return _Add.apply(stream, branch, scale, share, branch_bias)


def add_norm(stream: Tensor, branch: Tensor | None, scale: Tensor | None, share: Tensor | None, weight: Tensor, bias: Tensor,
             eps: float, branch_bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum as add() has it, the stream itself where `branch` is None, and its norm, whose mean and spread are fp32.

    Under autocast the norm comes in autocast's type, in which the layer behind it computes; else in the sum's.
    """
    return _AddNorm.apply(stream, branch, scale, share, weight, bias, eps, branch_bias, _computed_in(stream, branch))


def norm(stream: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """norm_plainly by the kernel, in the type that add_norm has it in."""
    return _Norm.apply(stream, weight, bias, eps, _computed_in(stream, None))


def _computed_in(stream: Tensor, branch: Tensor | None) -> torch.dtype:
    kind = stream.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return _sum_type(stream, branch)


def _sum_type(stream: Tensor, branch: Tensor | None) -> torch.dtype:
    return stream.dtype if branch is None else torch.promote_types(stream.dtype, branch.dtype)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, branch: Tensor, scale: Tensor | None, share: Tensor | None,
                branch_bias: Tensor | None) -> Tensor:
        branch = branch.contiguous()
        ctx.save_for_backward(branch if scale is not None else None, scale, share, branch_bias)
        ctx.types = stream.dtype, branch.dtype
        return _forward(stream.contiguous(), branch, scale, share, None, None, 0.0, _sum_type(stream, branch))[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        branch, scale, share, branch_bias = ctx.saved_tensors
        of_stream, of_branch = ctx.types
        if scale is None and share is None and branch_bias is None:
            return grad.to(of_stream), grad.to(of_branch), None, None, None
        _, into_branch, sums = _backward(
            grad.contiguous(), None, None, branch, scale, share, None, None, None, branch_bias is not None, of_stream, of_branch)
        if scale is None and share is None:
            into_branch = grad.to(of_branch)
        return grad.to(of_stream), into_branch, to_parameter(sums[2], scale), None, to_parameter(sums[3], branch_bias)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, branch: Tensor | None, scale: Tensor | None, share: Tensor | None, weight: Tensor, bias: Tensor,
                eps: float, branch_bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        stream = stream.contiguous()
        branch = None if branch is None else branch.contiguous()
        out, normed, mean, rstd = _forward(stream, branch, scale, share, weight, bias, eps, dtype)
        out = stream.view_as(stream) if branch is None else out
        ctx.save_for_backward(out, branch if scale is not None else None, scale, share, weight, bias, mean, rstd, branch_bias)
        ctx.types = stream.dtype, None if branch is None else branch.dtype
        return out, normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        out, branch, scale, share, weight, bias, mean, rstd, branch_bias = ctx.saved_tensors
        of_stream, of_branch = ctx.types
        into, into_branch, sums = _backward(
            grad.contiguous(), grad_normed.contiguous(), out, branch, scale, share, weight, mean, rstd, branch_bias is not None,
            of_stream, of_branch or of_stream)
        if of_branch is None:
            into_branch = None
        elif scale is None and share is None and of_branch == of_stream:
            into_branch = into
        return (into, into_branch, to_parameter(sums[2], scale), None, to_parameter(sums[0], weight), to_parameter(sums[1], bias), None,
                to_parameter(sums[3], branch_bias), None)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        stream = stream.contiguous()
        _, normed, mean, rstd = _forward(stream, None, None, None, weight, bias, eps, dtype)
        ctx.save_for_backward(stream, weight, bias, mean, rstd)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stream, weight, bias, mean, rstd = ctx.saved_tensors
        into, _, sums = _backward(
            None, grad.contiguous(), stream, None, None, None, weight, mean, rstd, False, stream.dtype, stream.dtype)
        return into, to_parameter(sums[0], weight), to_parameter(sums[1], bias), None, None


@torch.library.custom_op("vitscale::residual", mutates_args=())
def _forward(stream: Tensor, branch: Tensor | None, scale: Tensor | None, share: Tensor | None, weight: Tensor | None,
             bias: Tensor | None, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> the sum, its norm in `dtype`, mean and 1 / standard deviation of each row; empty where there is none of it."""
    from vitscale.kernels import triton_residual

    rows, width = stream.numel() // stream.shape[-1], stream.shape[-1]
    out, normed, mean, rstd = _made(stream, branch, weight, dtype)
    tiling = whole_rows(rows, width)
    triton_residual.forward[(tiling.down,)](
        stream, branch, scale, share, weight, bias, out, normed, mean, rstd, rows, 1 if share is None else rows // share.shape[0],
        WIDTH=width, ROWS=tiling.rows, COLS=tiling.cols, EPS=eps, HAS_BRANCH=branch is not None, HAS_SCALE=scale is not None,
        HAS_SHARE=share is not None, HAS_NORM=weight is not None, WIDE=wide(stream), num_warps=tiling.warps)
    return out, normed, mean, rstd


@_forward.register_fake
def _(stream: Tensor, branch: Tensor | None, scale: Tensor | None, share: Tensor | None, weight: Tensor | None, bias: Tensor | None,
      eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _made(stream, branch, weight, dtype)


def _made(stream: Tensor, branch: Tensor | None, weight: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nothing, exact = stream.new_empty(0), torch.promote_types(stream.dtype, torch.float32)
    out = nothing if branch is None else torch.empty_like(stream, dtype=_sum_type(stream, branch))
    if weight is None:
        return out, stream.new_empty(0), stream.new_empty(0), stream.new_empty(0)
    rows = stream.shape[:-1]
    return out, torch.empty_like(stream, dtype=dtype), stream.new_empty(rows, dtype=exact), stream.new_empty(rows, dtype=exact)


@torch.library.custom_op("vitscale::residual_backward", mutates_args=())
def _backward(grad: Tensor | None, grad_normed: Tensor | None, normed_of: Tensor | None, branch: Tensor | None, scale: Tensor | None,
              share: Tensor | None, weight: Tensor | None, mean: Tensor | None, rstd: Tensor | None, add_up: bool,
              of_stream: torch.dtype, of_branch: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of stream and branch, each empty where it is the gradient that came in or the other one, and the sums of columns that
    are the gradients of (4, D): weight, bias, scale, and if `add_up` the branch's bias; what is not asked for is undefined."""
    from vitscale.kernels import triton_residual

    model = _given(grad, grad_normed)
    into, into_branch, sums = _made_backward(model, scale, share, weight, of_stream, of_branch)
    rows, width = model.numel() // model.shape[-1], model.shape[-1]
    tiling = whole_rows(rows, width, most_steps=64)
    partial = sums.new_empty((tiling.down, 4, width))
    triton_residual.backward[(tiling.down,)](
        normed_of, branch, scale, share, weight, mean, rstd, grad, grad_normed, into, into_branch, partial, rows,
        1 if share is None else rows // share.shape[0], WIDTH=width, ROWS=tiling.rows, COLS=tiling.cols, STEPS=tiling.steps,
        HAS_NORM=weight is not None, HAS_OUT=grad is not None, HAS_SCALE=scale is not None, HAS_SHARE=share is not None,
        WRITES_BRANCH=into_branch.numel() > 0, SUM_BRANCH=add_up, WIDE=wide(model), num_warps=tiling.warps)
    return into, into_branch, partial.sum(0)


@_backward.register_fake
def _(grad: Tensor | None, grad_normed: Tensor | None, normed_of: Tensor | None, branch: Tensor | None, scale: Tensor | None,
      share: Tensor | None, weight: Tensor | None, mean: Tensor | None, rstd: Tensor | None, add_up: bool, of_stream: torch.dtype,
      of_branch: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return _made_backward(_given(grad, grad_normed), scale, share, weight, of_stream, of_branch)


def _given(grad: Tensor | None, grad_normed: Tensor | None) -> Tensor:
    found = grad_normed if grad is None else grad
    assert found is not None
    return found


def _made_backward(grad: Tensor, scale: Tensor | None, share: Tensor | None, weight: Tensor | None, of_stream: torch.dtype,
                   of_branch: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    into = grad.new_empty(0) if weight is None else torch.empty_like(grad, dtype=of_stream)
    own = scale is not None or share is not None or (weight is not None and of_branch != of_stream)
    into_branch = torch.empty_like(grad, dtype=of_branch) if own else grad.new_empty(0)
    return into, into_branch, grad.new_empty((4, grad.shape[-1]), dtype=torch.promote_types(grad.dtype, torch.float32))
