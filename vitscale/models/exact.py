"""Parameters that are computed with in fp32 whatever a block computes in: temperatures, whose exponential bf16 would be off by percents.

Engines that shard give a block its parameters in bf16.  What that takes away of such a parameter stands beside it, in a buffer: their sum
is its fp32 value, bit for bit.  Who holds fp32 parameters leaves the buffer at zero.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_REST = "_rest"


def keep_exact_(module: nn.Module, name: str) -> None:
    """Of the module's own parameter `name`; its forward asks `exact` for the value, and its reset_buffers calls `reset_exact_`."""
    module.register_buffer(name + _REST, torch.zeros_like(module.get_parameter(name), requires_grad=False), persistent=False)


def reset_exact_(module: nn.Module, name: str) -> None:
    module.get_buffer(name + _REST).zero_()


def wide(tensor: Tensor) -> Tensor:
    """The tensor in fp32 at least: float64 stays what it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def exact(module: nn.Module, name: str) -> Tensor:
    """The parameter's value in fp32 at least; gradients flow into the parameter."""
    return wide(getattr(module, name)) + module.get_buffer(name + _REST)


def rests(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name of the parameter, what bf16 takes away from it) of each that is kept exact."""
    for name, buffer in model.named_buffers():
        if name.endswith(_REST):
            yield name.removesuffix(_REST), buffer
