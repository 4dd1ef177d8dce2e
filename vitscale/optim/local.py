"""A rank's own part of a tensor, and which tensors lie alike."""

from collections.abc import Iterable
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

SomeTensor = TypeVar("SomeTensor", bound=Tensor)


def local(tensor: Tensor | None) -> Tensor:
    """The part of a sharded tensor that lies on this rank, sharing its memory; another tensor as it is."""
    assert tensor is not None
    return cast(Tensor, tensor.to_local()) if isinstance(tensor, DTensor) else tensor


def reshard(model: nn.Module) -> None:
    """Let go of what FSDP2 has gathered and kept: parameters are each rank's own part again.  Another model stays as it is."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def by_mesh(tensors: Iterable[SomeTensor]) -> list[list[SomeTensor]]:
    """The tensors, in order, by the ranks that they are sharded over; torch's operations on lists want them alike."""
    groups: dict[DeviceMesh | None, list[SomeTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(groups.values())
