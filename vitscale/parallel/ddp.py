"""One process, or torch's DistributedDataParallel: every rank holds the whole model (Li et al. 2020)."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitscale.models import Backbone
from vitscale.parallel.engine import Engine
from vitscale.parallel.state import Fill


class Replicated(Engine):
    """What every engine has that wraps the model in DistributedDataParallel, if there is more than one rank."""

    _wrapped: nn.Module
    _lays_out = False       # gradients are still to be laid out as those of the run that goes on

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        super().restore(shapes, fill)
        self._lays_out = self.world.size > 2    # the sum of two does not depend on their order

    def lay_out_(self, *inputs: Any) -> None:
        """Before the first step that resumes from a checkpoint, a forward and backward pass whose gradients are thrown away.

        After its first exchange, DDP lays the gradients out anew, in the order in which they came, and where one lies in a bucket
        decides in which order ranks add it up.  So the first step of an attempt would not be, to the last bit, the same step of a run
        that had never stopped.
        """
        if not self._lays_out or not torch.is_grad_enabled() or not isinstance(self._wrapped, DistributedDataParallel):
            return
        self._lays_out = False
        exchanges, self._wrapped.require_backward_grad_sync = self._wrapped.require_backward_grad_sync, True
        with torch.random.fork_rng():
            output = self._wrapped(*inputs)
            torch.stack([part.float().sum() for part in (output if isinstance(output, tuple) else (output,))]).sum().backward()
        self._wrapped.require_backward_grad_sync = exchanges
        self.optimizer.zero_grad(set_to_none=True)


class DdpEngine(Replicated):
    """bf16 is autocast over fp32 parameters, so gradients are fp32 and reduced in fp32."""

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self._wrapped = model, optimizer, model
        if self.world.size > 1:
            devices = [self.world.device.index] if self.world.device.type == "cuda" else None
            with warnings.catch_warnings():     # torch 2.13 announces another name, which older ones do not know
                warnings.simplefilter("ignore", FutureWarning)
                self._wrapped = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)

    @property
    def exchange_s(self) -> float | None:
        """torch times each of the first ten backward passes and every hundredth then: the exchange, and what of it ran beside others."""
        logged: dict[str, int] = getattr(self._wrapped, "_get_ddp_logging_data", dict)()      # no promise of torch's
        whole, beside = logged.get("backward_comm_time"), logged.get("backward_compute_comm_overlap_time")
        return None if whole is None or beside is None else max(whole - beside, 0) / 1e9

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        if last or self._wrapped is self.model:
            yield
        else:
            assert isinstance(self._wrapped, DistributedDataParallel)
            with self._wrapped.no_sync():
                yield

    def forward(self, images: Tensor, keep: Tensor | None, *more: Tensor) -> Any:
        module = self._wrapped if torch.is_grad_enabled() else self.model
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.parallel.precision == "bf16"):
            self.lay_out_(images, keep, *more)
            return module(images, keep, *more)
