"""A rank's own part of a tensor."""

from typing import cast

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor | None) -> Tensor:
    """The part of a sharded tensor that lies on this rank, sharing its memory; another tensor as it is."""
    assert tensor is not None
    return cast(Tensor, tensor.to_local()) if isinstance(tensor, DTensor) else tensor
