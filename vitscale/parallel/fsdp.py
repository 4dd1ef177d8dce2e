"""Fully sharded data parallel, torch's FSDP2 (Zhao et al. 2023): parameters, gradients and optimizer state are sharded over all ranks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vitscale.models import Backbone
from vitscale.parallel.ddp import clip_and_step
from vitscale.parallel.engine import Engine, Update, prepared
from vitscale.parallel.state import Fill, ValueOf, fill_parameters_, load_named_state, named_state


class FsdpEngine(Engine):
    """Each unit is gathered for its own forward and backward only.  bf16 computes in bf16 and reduces gradients in fp32."""

    def materialise(self, build: Callable[[], Backbone], value_of: ValueOf) -> Backbone:
        model = prepared(build, self.parallel)
        device = self.world.device
        mesh = init_device_mesh(device.type, (self.world.size,), mesh_dim_names=("shard",))
        policy = MixedPrecisionPolicy()
        if self.parallel.precision == "bf16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for unit in model.units():
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        model.to_empty(device=device)
        model.reset_buffers()
        fill_parameters_(model, value_of)
        return model

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        yield

    def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
        return self.model(images, keep)

    def step(self) -> Update:
        return clip_and_step(self.model, self.optimizer, self.work.clip_norm)

    def tensors(self) -> dict[str, Tensor]:
        return named_state(self.model, self.optimizer)

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        load_named_state(self.model, self.optimizer, shapes, fill)
