"""Fully sharded data parallel, torch's FSDP2 (Zhao et al. 2023): parameters, gradients and optimizer state are sharded over ranks.

The ranks form a grid (recipe/axes.py).  Along its axis `shard` what a rank holds is sharded; along `replicate` others hold the same and
exchange gradients alone (HSDP); along those after `shard` they are given the same samples and share the work of the blocks (SHARED)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vitscale.models import Backbone
from vitscale.optim.local import reshard
from vitscale.parallel.engine import Engine, images_in_bf16, prepared
from vitscale.parallel.state import Fill, ValueOf, fill_parameters_, fill_rests_
from vitscale.parallel.tensor import cut_
from vitscale.parallel.update import Read, Update
from vitscale.recipe.axes import CUTS, SAME_SAMPLES

# axis -> what it does to the blocks of a model, in place, before FSDP shards what is left; given the ranks along it
SHARED: dict[str, Callable[[Sequence[nn.Module], DeviceMesh], None]] = {
    "tensor": cut_,
}


class FsdpEngine(Engine):
    """Each unit is gathered for its own forward and backward only, or stays so for a whole step (parallel.gather).  bf16 computes in bf16
    and reduces gradients in fp32."""

    _copies: DeviceMesh | None = None       # the ranks that a parameter is sharded over, and before them those that hold copies of it
    _alike: DeviceMesh | None = None        # the ranks that are given the same samples
    _shared: Mapping[str, DeviceMesh]       # the same by axis

    @property
    def is_forward_local(self) -> bool:
        return self.world.axes.copy_size == 1

    def connect(self) -> DeviceMesh:
        """The ranks that hold parameters; materialise() asks for them, and what simulates a run before it."""
        if self._copies is None:
            axes = self.world.axes
            shared = {name: size for name, size in axes.sizes.items() if name in SAME_SAMPLES and size > 1}
            cut = {name: size for name, size in shared.items() if name in CUTS}
            outer = {"replicate": axes.copies} if axes.copies > 1 else {}
            grid = self._grid(outer | {"shard": axes.shards} | cut)
            self._copies = grid[(*outer, "shard")]
            if cut:     # so that norms over all that hold one copy are added up in one exchange
                grid[("shard", *cut)]._flatten("copy")
            every = grid if cut == shared else self._grid(axes.sizes)
            self._shared = {name: (grid if name in cut else every)[name] for name in shared}
            if shared:
                self._alike = self._shared[next(iter(shared))] if len(shared) == 1 else every[tuple(shared)]._flatten("alike")
        return self._copies

    def _grid(self, axes: Mapping[str, int]) -> DeviceMesh:
        return init_device_mesh(self.world.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))

    def materialise(self, build: Callable[[], Backbone], value_of: ValueOf) -> Backbone:
        model = prepared(build, self.parallel, self.world)
        device, mesh = self.world.device, self.connect()
        for axis, ranks in self._shared.items():
            SHARED[axis](model.units(), ranks)
        policy = MixedPrecisionPolicy()
        if self.parallel.precision == "bf16":
            # blocks are given angles and masks besides tokens, and these stay as exact as they come
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for unit in model.units():
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=self.parallel.gather == "each")
        fully_shard(model, mesh=mesh, mp_policy=policy)
        model.to_empty(device=device)
        model.reset_buffers()
        fill_parameters_(model, value_of)
        return model

    def hold(self, model: nn.Module, asked: str = "forward") -> None:
        """A model of ours is sharded as the trained one is, each unit gathered, in fp32, for its own forward pass: all ranks ask it
        together.  Another library's stays whole."""
        if self.world.axes.copy_size == 1 or not isinstance(model, Backbone):
            super().hold(model, asked)
            return
        for part in (*model.units(), model):
            fully_shard(part, mesh=self.connect(), reshard_after_forward=True)
        model.to(self.world.device)     # buffers
        if asked != "forward":          # which is known; of a method inside it, its parameters would be gone before it ended
            register_fsdp_forward_method(model, asked)

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.weights_changed()

    def weights_changed(self) -> None:
        if self.parallel.precision == "bf16":
            fill_rests_(self.model, _whole)

    def step(self, read: Read = float) -> Update:
        done = super().step(read)
        self.weights_changed()
        return done

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        super().restore(shapes, fill)
        self.weights_changed()

    def sync_inputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._alike is None:
            return tensors
        same = tuple(tensor.contiguous() for tensor in tensors)
        for tensor in same:
            dist.broadcast(tensor, group=self._alike.get_group(), group_src=0)
        return same

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        self.model.set_reshard_after_backward(last or self.parallel.gather == "each")       # what changes no weight may keep them
        yield

    def forward(self, images: Tensor, keep: Tensor | None, *more: Tensor) -> Any:
        if self.parallel.precision == "bf16":       # the weights are cast, not what goes in
            images, *more = images_in_bf16(images, *more)      # type: ignore[assignment]
        output = self.model(images, keep, *more)
        if not torch.is_grad_enabled():
            # The root, and with parallel.gather once every unit, keeps its gathered weights for a backward that never comes; its
            # parameters would be others than the optimizer's, and a checkpoint would lack what the optimizer knows of them.
            reshard(self.model)
        return output


def _whole(parameter: nn.Parameter) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
