"""Each kernel against its formula in float64, on a few numbers: before a run relies on it."""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.kernels.gelu import gelu
from vitscale.kernels.heads import split_heads, split_heads_plainly
from vitscale.kernels.residual import add, add_norm, add_plainly, norm_plainly

SAMPLES, TOKENS = 3, 37         # no multiple of any tile
EPS = 1e-6
# error of a result, as a share of the right one's length: a few times the rounding
ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

Computed = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@functools.cache
@torch.enable_grad()
def wrong(device: torch.device, dtype: torch.dtype, parameters: torch.dtype, widths: tuple[int, ...]) -> dict[str, str]:
    """Part -> what is wrong with its kernel, of those that do not compute right what is so wide and of such types."""
    found: dict[str, str] = {}
    for width in widths:
        for part, (shapes, kernel, formula) in cases(width).items():
            if part in found:
                continue
            try:
                off = error(kernel, formula, shapes, device, dtype, parameters)
            except Exception as failure:     # a compiler may fail in any way; torch's own operations remain
                found[part] = f"failed on rows of {width}: {type(failure).__name__}: {str(failure).partition(chr(10))[0][:200]}"
                continue
            if not off <= ALLOWED[dtype]:
                found[part] = f"is off by {off:.1e} on rows of {width}, where {ALLOWED[dtype]:.0e} is rounding"
    return found


def cases(width: int, samples: int = SAMPLES, tokens: int = TOKENS) -> dict[str, tuple[list[tuple[int, ...]], Computed, Computed]]:
    """Part -> (shapes of what it is given, by the kernel, by the formula)."""
    stream, row = (samples, tokens, width), (width,)
    heads = next(count for count in range(max(width // 64, 1), 0, -1) if width % count == 0)
    return {
        "gelu": ([stream, row], lambda given: [gelu(given[0], given[1])], lambda given: [F.gelu(_added(*given))]),
        "norm": ([stream, stream, row, (samples,), row, row, row], _ending, _ending_plainly),
        "pack": ([(samples, tokens, 3 * width), (3 * width,)], lambda given: split_heads(given[0], heads, given[1]),
                 lambda given: split_heads_plainly(_added(*given), heads)),
    }


def _ending(given: Sequence[Tensor]) -> Sequence[Tensor]:
    stream, branch, scale, share, weight, bias, branch_bias = given
    stream, entering = add_norm(stream, None, None, None, weight, bias, EPS)
    stream, normed = add_norm(stream, branch, scale, share.detach(), weight, bias, EPS, branch_bias)
    return stream, normed, add(stream, entering, scale, share.detach(), branch_bias)


def _ending_plainly(given: Sequence[Tensor]) -> Sequence[Tensor]:
    stream, branch, scale, share, weight, bias, branch_bias = given
    entering = norm_plainly(stream, weight, bias, EPS)
    stream = add_plainly(stream, _added(branch, branch_bias), scale, share.detach())
    return stream, norm_plainly(stream, weight, bias, EPS), add_plainly(stream, _added(entering, branch_bias), scale, share.detach())


def _added(value: Tensor, bias: Tensor) -> Tensor:
    """The value, with the gradient that a bias which has been added has."""
    return value + (bias - bias.detach())


def error(kernel: Computed, formula: Computed, shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype,
          parameters: torch.dtype | None = None) -> float:
    """The greatest error of a result or gradient, as a share of the right one's length; not a number where one is none.

    `parameters`: the type of what has one dimension, if it is another.
    """
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=draw).to(device, parameters if parameters and len(shape) == 1 else dtype).requires_grad_()
             for shape in shapes]
    exact = [one.detach().double().requires_grad_() for one in given]
    results, right = kernel(given), formula(exact)
    back = [torch.randn(one.shape, generator=draw).to(device, dtype) for one in results]
    torch.autograd.backward(list(results), back)
    torch.autograd.backward(list(right), [one.double() for one in back])
    pairs = [*zip(results, right, strict=True)]
    pairs += [(one.grad, other.grad) for one, other in zip(given, exact, strict=True) if one.grad is not None and other.grad is not None]
    return max((_off(got, wanted) for got, wanted in pairs), key=lambda off: float("inf") if off != off else off)


@torch.no_grad()
def _off(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())
