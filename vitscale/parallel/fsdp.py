"""Fully sharded data parallel, torch's FSDP2 (Zhao et al. 2023): parameters, gradients and optimizer state are sharded over all ranks.

With parallel.tensor the ranks form a grid: along its rows they share the matrices of each block (parallel/tensor.py), along its columns
what each of them holds is sharded as above."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vitscale.models import Backbone
from vitscale.parallel.engine import Engine, prepared
from vitscale.parallel.state import Fill, ValueOf, fill_parameters_, fill_rests_
from vitscale.parallel.tensor import cut_
from vitscale.parallel.update import Update


class FsdpEngine(Engine):
    """Each unit is gathered for its own forward and backward only.  bf16 computes in bf16 and reduces gradients in fp32."""

    _shard: DeviceMesh | None = None        # the ranks that a parameter is sharded over
    _tensor: DeviceMesh | None = None       # the ranks that are given the same samples

    @property
    def is_forward_local(self) -> bool:
        return self.world.size == 1

    def connect(self) -> DeviceMesh:
        """The ranks that parameters are sharded over; materialise() asks for them, and what simulates a run before it."""
        if self._shard is None:
            if self.world.tensor == 1:
                self._shard = init_device_mesh(self.world.device.type, (self.world.size,), mesh_dim_names=("shard",))
            else:
                shape = (self.world.data_size, self.world.tensor)
                grid = init_device_mesh(self.world.device.type, shape, mesh_dim_names=("shard", "tensor"))
                grid._flatten("ranks")      # so that norms over the whole grid are added up in one exchange
                self._shard, self._tensor = grid["shard"], grid["tensor"]
        return self._shard

    def materialise(self, build: Callable[[], Backbone], value_of: ValueOf) -> Backbone:
        model = prepared(build, self.parallel)
        device, mesh = self.world.device, self.connect()
        if self._tensor is not None:
            cut_(model.units(), self._tensor)
        policy = MixedPrecisionPolicy()
        if self.parallel.precision == "bf16":
            # blocks are given angles and masks besides tokens, and these stay as exact as they come
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for unit in model.units():
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        model.to_empty(device=device)
        model.reset_buffers()
        fill_parameters_(model, value_of)
        return model

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights_changed()

    def weights_changed(self) -> None:
        if self.parallel.precision == "bf16":
            fill_rests_(self.model, _whole)

    def step(self) -> Update:
        done = super().step()
        self.weights_changed()
        return done

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        super().restore(shapes, fill)
        self.weights_changed()

    def agreed(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._tensor is None:
            return tensors
        same = tuple(tensor.contiguous() for tensor in tensors)
        for tensor in same:
            dist.broadcast(tensor, group=self._tensor.get_group(), group_src=0)
        return same

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        yield

    def forward(self, images: Tensor, keep: Tensor | None, *more: Tensor) -> Any:
        if self.parallel.precision == "bf16":       # the weights are cast, not what goes in
            images = images.bfloat16()
        output = self.model(images, keep, *more)
        if not torch.is_grad_enabled():
            # The root keeps its gathered weights for a backward that never comes; its parameters would be others than the optimizer's,
            # and a checkpoint would lack what the optimizer knows of them.
            assert isinstance(self.model, FSDPModule)
            self.model.reshard()
        return output


def _whole(parameter: nn.Parameter) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
