"""An exponential moving average of the weights, in fp32, each rank on its own shard.

Every parameter is averaged where it lies: a plain tensor, or the local part of a sharded one (DTensor).  Elementwise, so no rank needs
another's part and nothing is communicated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitscale.optim.local import reshard

_AT_A_TIME = 1 << 24        # numbers


def _local(tensor: Tensor) -> Tensor:
    """The part of `tensor` on this rank, sharing its memory.  Call without autograd."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


class WeightAverage:
    """average <- decay * average + (1 - decay) * weight after each update (Polyak & Juditsky 1992 with exponential weights).  The decay may
    be another at each update, as of an objective's averaged teacher (Grill et al. 2020, BYOL).

    Make it after sharding and after the weights are set: the average starts from them.  The weights must be the fp32 master weights.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, decay: float = 1.0) -> None:
        self.decay = decay
        self._model = model
        self._parameters = dict(model.named_parameters())
        wrong = sorted(name for name, parameter in self._parameters.items() if parameter.dtype != torch.float32)
        assert not wrong, f"only fp32 weights can be averaged; these are not: {wrong}"
        self._averages = [_local(parameter).clone() for parameter in self._parameters.values()]
        sharded = [number for number, parameter in enumerate(self._parameters.values()) if isinstance(parameter, DTensor)]
        marks = zip(sharded, accumulate(self._averages[number].numel() for number in sharded), strict=True)
        self._parts = [[number for number, _ in part] for _, part in groupby(marks, lambda mark: mark[1] // _AT_A_TIME)]
        self._swapped = False

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Move every average towards its weight.  Call once after each optimizer update."""
        assert not self._swapped, "update() inside swapped() would average the averages"
        torch._foreach_lerp_(self._averages, self._locals(), 1 - (self.decay if decay is None else decay))

    @torch.no_grad()
    def restart(self) -> None:
        """Let the averages be the current weights, as after loading weights that came without averages."""
        assert not self._swapped
        torch._foreach_copy_(self._averages, self._locals())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model's parameters hold the averages; after, also after an error, their own values again, bit for bit.

        A teacher is asked in every step.  Whole tensors change places, which costs nothing; of shards, which FSDP2 knows by their memory,
        contents are exchanged, some tensors at a time in few calls.  The extra memory is that of _AT_A_TIME numbers and the largest shard.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def tensors(self) -> dict[str, Tensor]:
        """The averages under the parameters' names, placed as these are (DTensor for DTensor), sharing this object's memory: what is
        loaded into them in place is in effect."""
        assert not self._swapped, "inside swapped() the averages are in the model"
        pairs = zip(self._parameters.items(), self._averages, strict=True)
        return {name: _placed_as(parameter, average) for (name, parameter), average in pairs}

    def _locals(self) -> list[Tensor]:
        # Asked anew each time: an engine may move a shard's memory (after a load, for one) but keeps the parameter.
        return [_local(parameter) for parameter in self._parameters.values()]

    @torch.no_grad()
    def _exchange(self) -> None:
        reshard(self._model)        # else what is still gathered would be used again, now stale
        for number, parameter in enumerate(self._parameters.values()):
            if not isinstance(parameter, DTensor):
                parameter.data, self._averages[number] = self._averages[number], parameter.data
        weights = self._locals() if self._parts else []
        for part in self._parts:
            own, averages = [weights[number] for number in part], [self._averages[number] for number in part]
            kept = torch._foreach_mul(own, 1.0)                 # a copy
            torch._foreach_copy_(own, averages)
            torch._foreach_copy_(averages, kept)
        self._swapped = not self._swapped


def _placed_as(parameter: Tensor, average: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return average
    return DTensor.from_local(
        average, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride(),
    )
