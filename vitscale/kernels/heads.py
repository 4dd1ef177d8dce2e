"""Queries, keys and values of each head out of one layer's output; their gradients go back into one by a kernel."""

from typing import Any

import torch
from torch import Tensor

from vitscale.kernels.sums import to_parameter, wide
from vitscale.kernels.tiles import parts_of_rows


def split_heads_plainly(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The formula: (B, N, 3 D) -> queries, keys, values (B, H, N, K) each, views of it."""
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def split_heads(qkv: Tensor, heads: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the kernel.  `bias` (3 D,): what was added to make `qkv`, without its gradient, which is found here."""
    return _SplitHeads.apply(qkv, heads, bias)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(bias)
        by_part = qkv.unflatten(-1, (3, heads, -1))
        query, key, value = (by_part.select(2, part).transpose(1, 2) for part in range(3))
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        bias, = ctx.saved_tensors
        query, key, value = (grad if grad.stride(-1) == 1 else grad.contiguous() for grad in grads)
        into, sums = _pack(query, key, value, bias is not None)
        return into, None, to_parameter(sums, bias)


@torch.library.custom_op("vitscale::pack_heads", mutates_args=())
def _pack(query: Tensor, key: Tensor, value: Tensor, add_up: bool) -> tuple[Tensor, Tensor]:
    """Gradients (B, H, N, K), of strides of their own -> (B, N, 3 D), and the sums of its columns (3 D,), zeros unless `add_up`."""
    from vitscale.kernels import triton_heads

    batch, heads, tokens, head = query.shape
    width, rows = heads * head, batch * tokens
    into = query.new_empty((batch, tokens, 3 * width))
    tiling = parts_of_rows(rows, width, 4096, cols=256, most_steps=16)
    sums = query.new_empty((tiling.down if add_up else 0, 3 * width), dtype=torch.promote_types(query.dtype, torch.float32))
    strides = [stride for one in (query, key, value) for stride in one.stride()[:3]]
    triton_heads.pack[(tiling.down, tiling.across)](
        query, key, value, into, sums, rows, tokens, *strides, WIDTH=width, HEAD=head, ROWS=tiling.rows, COLS=tiling.cols,
        STEPS=tiling.steps, SUM=add_up, WIDE=wide(query), num_warps=tiling.warps)
    return into, sums.sum(0)


@_pack.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, add_up: bool) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, head = query.shape
    return (query.new_empty((batch, tokens, 3 * heads * head)),
            query.new_empty(3 * heads * head, dtype=torch.promote_types(query.dtype, torch.float32)))
