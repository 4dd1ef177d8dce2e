"""One process, or torch's DistributedDataParallel: every rank holds the whole model (Li et al. 2020)."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vitscale.models import Backbone
from vitscale.parallel.engine import Engine, Update
from vitscale.parallel.state import Fill, load_named_state, named_state


class DdpEngine(Engine):
    """bf16 is autocast over fp32 parameters, so gradients are fp32 and reduced in fp32."""

    _wrapped: nn.Module

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self._wrapped = model, optimizer, model
        if self.world.size > 1:
            devices = [self.world.device.index] if self.world.device.type == "cuda" else None
            with warnings.catch_warnings():     # torch 2.13 announces another name, which older ones do not know
                warnings.simplefilter("ignore", FutureWarning)
                self._wrapped = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        if last or self._wrapped is self.model:
            yield
        else:
            assert isinstance(self._wrapped, DistributedDataParallel)
            with self._wrapped.no_sync():
                yield

    def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
        module = self._wrapped if torch.is_grad_enabled() else self.model
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.parallel.precision == "bf16"):
            return module(images, keep)

    def step(self) -> Update:
        return clip_and_step(self.model, self.optimizer, self.work.clip_norm)

    def tensors(self) -> dict[str, Tensor]:
        return named_state(self.model, self.optimizer)

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        load_named_state(self.model, self.optimizer, shapes, fill)


def clip_and_step(model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> Update:
    """Clip by the global norm (Pascanu et al. 2013), update unless that norm is not finite, clear the gradients.

    After the reduction every rank holds (its part of) the same gradient, so the norm, and with it the decision, is the same on all.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    value = float(norm)
    applied = value == value and abs(value) != float("inf")
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(value, applied)
