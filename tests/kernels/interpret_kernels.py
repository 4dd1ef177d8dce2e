"""A program: kernels on a CPU, in Triton's interpreter; prints as JSON what each case found: numbers, or how it failed.

By itself, for a process compiles kernels or interprets them, as its environment says when it begins.  With `all`: the larger grids.
"""

import functools
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from backbones import BACKBONES, Case, losses_of
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from vitscale.kernels.check import cases, error, wrong
from vitscale.kernels.gelu import gelu
from vitscale.kernels.heads import split_heads
from vitscale.kernels.residual import add, add_norm, norm
from vitscale.parallel import kernels
from vitscale.parallel.kernels import chosen
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import Parallel

ALL = "all" in sys.argv
CPU = torch.device("cpu")
LAUNCHED: set[str] = set()
SIXTEEN, WHOLE = (torch.float16, torch.bfloat16), torch.float32


def errors() -> Iterator[tuple[str, float]]:
    """Of each kernel against float64, as a share of its rounding; rows of images of 197 and 257 tokens, and tails of tiles."""
    sizes = [(24, 197), (80, 257), (128, 197)] if ALL else [(24, 197), (80, 257)]
    for width, tokens in sizes:
        for dtype, allowed in ((WHOLE, 2e-6), *((kind, 1e-2) for kind in SIXTEEN if ALL or width == 24)):
            for part, (shapes, kernel, formula) in cases(width, 2, tokens).items():
                yield f"{part} of {tokens} tokens of {width}, {dtype}", error(kernel, formula, shapes, CPU, dtype) / allowed
    for width in (1000, 2500, 8192) if ALL else (1000,):     # a row is a tile
        for part, (shapes, kernel, formula) in cases(width, 1, 3).items():
            yield f"{part} of rows of {width}", error(kernel, formula, shapes, CPU, WHOLE) / 2e-6


def gradients() -> Iterator[tuple[str, bool]]:
    """torch's own check by differences, of every gradient that a kernel makes."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(0)
    check = functools.partial(torch.autograd.gradcheck, atol=1e-6)
    stream, branch, scale, weight, bias = draw(2, 2, 3), draw(2, 2, 3), draw(3), draw(3), draw(3)
    keep = torch.tensor([0.0, 1.25], dtype=torch.float64)
    yield "gelu", check(gelu, (draw(2, 5),))
    yield "norm", check(lambda *given: norm(*given, 1e-6), (stream, weight, bias))
    yield "norm, and the stream", check(lambda x, w, b: add_norm(x, None, None, None, w, b, 1e-6), (stream, weight, bias))
    for one, of in ((None, None), (scale, None), (None, keep), (scale, keep)) if ALL else ((None, None), (scale, keep)):
        words = f"{'' if one is None else ', scaled'}{'' if of is None else ', kept'}"
        more = () if one is None else (one,)
        yield f"sum{words}", check(
            lambda x, y, *more, of=of: add(x, y, *(more or (None,)), of), (stream, branch, *more))
        yield f"sum and norm{words}", check(
            lambda x, y, w, b, *more, of=of: add_norm(x, y, *(more or (None,)), of, w, b, 1e-6), (stream, branch, weight, bias, *more))
    yield "heads", check(lambda qkv: split_heads(qkv, 2), (draw(2, 2, 6),))


def corners() -> Iterator[tuple[str, bool]]:
    """What is laid out otherwise, dropped, or far from zero."""
    torch.manual_seed(0)
    across = torch.randn(6, 10).T.requires_grad_()
    gelu(across).sum().backward()
    yield "a transposed input", torch.allclose(across.grad, _slope(across.detach()), atol=1e-5)
    stream, branch, bias = torch.randn(2, 3, 8), torch.full((2, 3, 8), 1e30, requires_grad=True), torch.zeros(8, requires_grad=True)
    out = add(stream, branch, None, torch.tensor([0.0, 0.0]), bias)
    out.sum().backward()
    yield "dropped branches", torch.equal(out, stream) and not branch.grad.any() and not bias.grad.any()
    far = torch.tensor([-3e4, -60.0, -9.0, 9.0, 60.0, 3e4]).requires_grad_()
    for dtype in (WHOLE, torch.bfloat16):
        values, = torch.autograd.grad(gelu(far.to(dtype)).sum(), far)
        results = gelu(far.detach().to(dtype)).float()
        yield f"far from zero, {dtype}", bool(torch.allclose(results, far.clamp(min=0), rtol=4e-3, atol=1e-6)
                                             and torch.allclose(values, (far > 0).float(), atol=1e-3))
    near = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    off = (_by_polynomial(near) - torch.nn.functional.gelu(near)).abs().max()
    yield f"the polynomial is within 2.5e-5 ({off:.1e})", bool(off < 2.55e-5)
    grad = torch.randn(2, 4, 3, 10).transpose(2, 3)             # its last stride is not one
    qkv = torch.randn(2, 10, 36, requires_grad=True)
    queries, keys, values = split_heads(qkv, 4)
    torch.autograd.backward([queries, keys, values], [grad, grad.contiguous(), grad.transpose(1, 2).contiguous().transpose(1, 2)])
    yield "gradients of any strides", torch.equal(qkv.grad, grad.transpose(1, 2).flatten(2).repeat(1, 1, 3))


def _by_polynomial(numbers: Tensor) -> Tensor:
    """In float64, which the launcher would give erf: the kernel itself."""
    from vitscale.kernels import triton_gelu

    out = torch.full_like(numbers, torch.nan)
    triton_gelu.forward[(1,)](numbers, out, numbers.numel(), BLOCK=4096, POLY=True, WIDE=triton_gelu.tl.float64)
    return out


def _slope(numbers: Tensor) -> Tensor:
    numbers = numbers.clone().requires_grad_()
    return torch.autograd.grad(torch.nn.functional.gelu(numbers).sum(), numbers)[0]


def models() -> Iterator[tuple[str, Any]]:
    """-> the greatest difference of a loss to torch's own operations', as a share of it, in fp32; and the kernels that ran."""
    some = ("vit", "vit-parallel", "vit-groups", "vit-mixed", "vit-eva", "deit", "swin", "swin-v2", "convnext", "convnext-v2")
    kernels.wrong = lambda *_: {}       # what the check at start-up launches is not what the model does
    yield "vit-modern, 30 steps", _apart("vit-modern", 30)
    for backbone in BACKBONES if ALL else some:
        yield backbone, _apart(backbone, 2)
    yield "vit-modern, recomputed", _apart("vit-modern", 2, recompute="selective")
    yield "swin, recomputed", _apart("swin", 2, recompute="blocks")
    yield "vit-modern, sharded", _apart("vit-modern", 2, engine="fsdp", recompute="selective")
    for engine in ("ddp", "fsdp"):
        yield f"vit-modern, in bf16 by {engine}", _apart("vit-modern", 2, engine=engine, precision="bf16")
        yield f"convnext, in bf16 by {engine}", _apart("convnext", 2, engine=engine, precision="bf16")
    torch.compile = functools.partial(torch.compile, backend="inductor" if ALL else "aot_eager")
    yield "vit, compiled", _apart("vit", 2, compile=True)
    if ALL:
        for backbone in ("vit-modern", "swin", "convnext", "deit"):
            yield f"{backbone}, compiled", _apart(backbone, 2, compile=True, recompute="selective")
        yield "vit-modern, compiled and sharded", _apart("vit-modern", 2, compile=True, engine="fsdp")


def _apart(backbone: str, steps: int, **parallel: Any) -> tuple[float, list[str]]:
    LAUNCHED.clear()
    ours = _losses(backbone, steps, kernels="auto", **parallel)
    launched = sorted(LAUNCHED)
    torchs = _losses(backbone, steps, kernels="torch", **parallel)
    return max(abs(one - other) / abs(other) for one, other in zip(ours, torchs, strict=True)), launched


def _losses(backbone: str, steps: int, **parallel: Any) -> Sequence[float]:
    settings = Parallel(device="cpu", **parallel)
    with joined(settings, RankInfo()) as world:
        return losses_of(world, Case(backbone, settings, steps))


def noting_(executor: Any) -> None:
    """Let the interpreter note the names of kernels that it runs."""
    run = executor.__call__

    def noted(self: Any, *given: Any, **named: Any) -> Any:
        LAUNCHED.add(f"{self.fn.__module__.rpartition('_')[2]} {self.fn.__name__}")
        return run(self, *given, **named)

    executor.__call__ = noted


def choices() -> Iterator[tuple[str, Any]]:
    with joined(Parallel(device="cpu"), RankInfo()) as world:
        for name, settings in {"auto": {}, "torch": {"kernels": "torch"}, "stage 3": {"engine": "zero", "zero_stage": 3},
                               "cut": {"engine": "fsdp", "tensor": 2}}.items():
            choice = chosen(Parallel(device="cpu", **settings), world, (24, 9000))
            yield name, [sorted(choice.parts), choice.why, choice.failed]
        from vitscale.kernels import triton_gelu, triton_heads

        right = triton_gelu.A, triton_heads.pack
        triton_gelu.A, triton_heads.pack = triton_gelu.tl.constexpr(1.5), None
        wrong.cache_clear()
        choice = chosen(Parallel(device="cpu", precision="bf16"), world, (24,))
        triton_gelu.A, triton_heads.pack = right
        wrong.cache_clear()
        yield "broken", [sorted(choice.parts), choice.why, choice.failed]


def main() -> None:
    noting_(GridExecutor)
    torch.use_deterministic_algorithms(True)        # it also fills new memory with what is not a number
    found: dict[str, dict[str, Any]] = {}
    for group in (choices, errors, gradients, corners, models):
        mine = found[group.__name__] = {}
        try:
            mine.update(group())
        except Exception:
            mine["failed"] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
