"""What recomputation may never do: change a gradient; and what it is for: less is kept, and selective computes no product twice."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitscale.parallel.recompute import recompute_

WIDTH = 6
aten = torch.ops.aten
PRODUCTS = {
    "linear": lambda x, w: F.linear(x, w),
    "linear of what is not contiguous": lambda x, w: F.linear(x.transpose(0, 1), w, w[0]).transpose(0, 1),
    "linear of two dimensions": lambda x, w: F.linear(x.flatten(0, 1), w, w[0]).unflatten(0, x.shape[:2]),
    "matmul": lambda x, w: x.matmul(w.t()),
    "bmm": lambda x, w: torch.bmm(x, w.expand(x.shape[0], -1, -1)),
    "attention": lambda x, w: F.scaled_dot_product_attention(*(x[:, None] * w[row] for row in range(3))).squeeze(1),
}
# what may be done to a product in place, through itself or through a view of it; DeepSpeed's linear layer of stage 3 adds its bias so
CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nothing": lambda y, b: y,
    "add_": lambda y, b: y.add_(b),
    "add_ to a part": lambda y, b: (y[:, 1:].add_(b), y)[1],
    "twice": lambda y, b: y.add_(b).mul_(0.5),
    "through a view": lambda y, b: (y[..., ::2].mul_(1.5), y)[1],
    "relu_": lambda y, b: y.relu_(),
    "copy_ of part": lambda y, b: (y[:, :1].copy_(b.expand(y.shape[0], 1, -1)), y)[1],
    "addcmul_": lambda y, b: y.addcmul_(b, b, value=2.0),
    "foreach": lambda y, b: (torch._foreach_add_([y], [b.expand_as(y).contiguous()]), y)[1],
}


class Unit(nn.Module):
    """A product whose output is changed in place before anything that needs it for its gradient."""

    def __init__(self, product: str, change: str) -> None:
        super().__init__()
        self.product, self.change = PRODUCTS[product], CHANGES[change]
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=draw))
        self.bias = nn.Parameter(torch.randn(WIDTH, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        inside = x + 1.0            # so that what is changed belongs to nobody else
        for _ in range(2):
            y = self.product(inside, self.weight)
            inside = self.change(y.clone() if y.grad_fn is None else y, self.bias).sin()
        return x + inside.exp()


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[object] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):    # type: ignore[no-untyped-def]
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def gradients(policy: str, product: str, change: str) -> tuple[list[Tensor], Counter[object]]:
    unit = Unit(product, change)
    recompute_([unit], policy)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with Counted() as counted:
        output = unit(x)
        output.square().sum().backward()
    return [output.detach(), x.grad, unit.weight.grad, *([] if unit.bias.grad is None else [unit.bias.grad])], counted.calls


# attention needs its own output for its gradient: to change that is refused by torch
@pytest.mark.parametrize(("product", "change"), [pair for pair in itertools.product(PRODUCTS, CHANGES) if pair[0] != "attention"]
                         + [("attention", "nothing")])
def test_what_is_kept_is_what_was_computed_whatever_is_done_to_it(product: str, change: str) -> None:
    wanted, plain = gradients("none", product, change)
    for policy in ("blocks", "selective"):
        found, calls = gradients(policy, product, change)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True)), policy
        kept = [aten.mm.default, aten.addmm.default, aten.bmm.default, aten._scaled_dot_product_flash_attention_for_cpu.default]
        more = sum(calls[op] - plain[op] for op in kept)
        assert (more == 0) == (policy == "selective")


def test_selective_holds_less_than_none_and_more_than_blocks() -> None:
    held = {}
    for policy in ("none", "selective", "blocks"):
        saved: dict[int, int] = {}
        block = nn.Sequential(nn.Linear(64, 64), *(nn.GELU() for _ in range(4)), nn.LayerNorm(64), nn.Linear(64, 64))
        recompute_([block], policy)
        before = torch.zeros(32, 64, requires_grad=True)
        live = torch.nn.Parameter(before)
        with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, saved=saved: (saved.__setitem__(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()),
                                             tensor)[1], lambda tensor: tensor):
            block(live)
        held[policy] = sum(saved.values())
    assert held["blocks"] <= held["selective"] < held["none"]


@pytest.mark.parametrize("policy", ["blocks", "selective"])
@pytest.mark.parametrize(("frozen", "before"), list(itertools.product([False, True], repeat=2)))
def test_compiled_units_may_be_frozen(policy: Literal["blocks", "selective"], frozen: bool, before: bool) -> None:
    """Also the first ones, through which no gradient flows at all; and evaluations between steps need none of any."""
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + F.scaled_dot_product_attention(*(x[:, None] * self.weight for _ in range(3))).squeeze(1)

    unit = Attention().requires_grad_(not frozen)
    x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=before)
    plain = unit(x)
    learning = [tensor for tensor in (unit.weight, x) if tensor.requires_grad]
    wanted = torch.autograd.grad(plain.sum(), learning) if learning else ()
    recompute_([unit], policy, compiled=True)
    torch._dynamo.reset()
    compiled = torch.compile(unit.forward, backend="aot_eager")
    for _ in range(2):
        out = compiled(x)
        assert torch.allclose(out, plain)
        found = torch.autograd.grad(out.sum(), learning) if learning else ()
        assert all(torch.allclose(one, other) for one, other in zip(found, wanted, strict=True))
        with torch.no_grad():
            assert torch.allclose(compiled(x), plain)
