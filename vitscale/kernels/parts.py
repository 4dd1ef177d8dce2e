"""Which parts of a model have kernels, where these can run, and how a model is told to use them."""

import importlib.util
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

# gelu: GELU; norm: residual, LayerScale, stochastic depth and LayerNorm; pack: gradients of queries, keys and values side by side.
# bias: those kernels also find the gradient of the bias of the linear layer before them, adding up what they have in hand
PARTS = ("gelu", "norm", "pack", "bias")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"     # Triton's own switch: kernels run on a CPU, slowly, number by number
OLDEST = (8, 0)         # compute capability: Ampere, the first with bf16
WIDEST = 8192           # numbers of a row that a kernel takes: it holds whole rows in registers
_TYPES = (torch.bfloat16, torch.float16, torch.float32, *((torch.float64,) if INTERPRETED else ()))


class Fusing(nn.Module):
    """A module parts of which may be computed by kernels: `parts` says which."""

    parts: frozenset[str] = frozenset()


def turn_on_(model: nn.Module, parts: Iterable[str]) -> None:
    """Let all of the model's modules use these kernels."""
    for module in model.modules():
        if isinstance(module, Fusing):
            module.parts = frozenset(parts)


def widths(model: nn.Module) -> Iterator[int]:
    """Of the rows that its norms' kernels would be given."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            yield module.normalized_shape[-1]


def takes(tensor: Tensor) -> bool:
    """Whether a kernel may be given this tensor (..., D) and those that go with it; a graph that is exported has the formulas."""
    return ((tensor.is_cuda or INTERPRETED) and tensor.dtype in _TYPES and 0 < tensor.shape[-1] <= WIDEST and tensor.numel() > 0
            and not torch.compiler.is_exporting())


def why_none(device: torch.device) -> str | None:
    """Why no kernel can run on this device; None: they can."""
    if not INTERPRETED and device.type != "cuda":
        return "they are for GPUs"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is older than they want (compute capability {OLDEST[0]}.{OLDEST[1]})"
    return None
