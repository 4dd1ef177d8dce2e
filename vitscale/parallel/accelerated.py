"""An adapter for people who run `accelerate launch` with a configuration of theirs; it checks that they got what they asked for."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vitscale.counts import plural
from vitscale.errors import ClusterError
from vitscale.models import Backbone
from vitscale.parallel.ddp import Replicated


class AccelerateEngine(Replicated):
    """accelerate wraps the model by its own configuration: nothing, DDP, or FSDP2."""

    _accelerator: Any

    @property
    def is_forward_local(self) -> bool:
        return self.world.size == 1 or isinstance(self._wrapped, DistributedDataParallel)

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        asks_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        bf16 = self.parallel.precision == "bf16"
        if bf16 and asks_fsdp:
            raise ClusterError("accelerate's FSDP reduces gradients in bf16; use parallel.engine=fsdp, which reduces in fp32")
        on_cpu = self.world.device.type == "cpu"
        # with cpu=True accelerate runs DDP whatever else it was told, so FSDP is asked for without it
        self._accelerator = Accelerator(cpu=on_cpu and not asks_fsdp, mixed_precision="bf16" if bf16 else "no",
                                        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu else None)
        self._wrapped, wrapped_optimizer = self._accelerator.prepare(model, optimizer)
        self.optimizer = wrapped_optimizer.optimizer
        self.model = self._accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=True)
        self._assert_as_asked(asks_fsdp)

    def _assert_as_asked(self, asks_fsdp: bool) -> None:
        """accelerate can fall back to DDP, or to ranks that never talk to each other, without a word; this says it."""
        found = f"accelerate made {self._accelerator.distributed_type} over {plural(self._accelerator.num_processes, 'process')}"
        if self._accelerator.num_processes != self.world.size:
            raise ClusterError(f"{found}, but {self.world.size} ranks were started: they would train without synchronisation")
        parameters = list(self.model.parameters())
        sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
        if asks_fsdp and not sharded:
            raise ClusterError(f"{found} and the parameters are not sharded, though FSDP was asked for; "
                               "set fsdp_version: 2 in accelerate's configuration, or use parallel.engine=fsdp")
        if not sharded and self.world.size > 1 and not isinstance(self._wrapped, DistributedDataParallel):
            raise ClusterError(f"{found} and wrapped the model as {type(self._wrapped).__name__}; vitscale supports accelerate's DDP and "
                               "FSDP2; for DeepSpeed use parallel.engine=zero")
        wrong = {str(parameter.dtype) for parameter in parameters} - {"torch.float32"}
        if wrong:
            raise ClusterError(f"{found} and keeps parameters in {', '.join(sorted(wrong))}; fp32 master weights are wanted")

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        if last:
            yield
        else:
            with self._accelerator.no_sync(self._wrapped):
                yield

    def forward(self, images: Tensor, keep: Tensor | None, *more: Tensor) -> Any:
        # a DDP wrapper would synchronise in evaluation too; a sharded model has no other way in
        evaluating = not torch.is_grad_enabled() and isinstance(self._wrapped, DistributedDataParallel)
        self.lay_out_(images, keep, *more)
        return (self.model if evaluating else self._wrapped)(images, keep, *more)
