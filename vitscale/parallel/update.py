"""One optimizer update: clipped, and left out on all ranks together when the gradient is not finite."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitscale.optim.local import by_mesh

# Brings a norm, a scalar and the same on all ranks, to the host, and with it whatever else the host wants to know of a step: the one time
# in a step that it waits for its device.
Read = Callable[[Tensor], float]


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    grad_norm: float        # before clipping
    applied: bool           # False when the gradient was not finite, on all ranks alike


def clip_and_step(model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None, read: Read = float) -> Update:
    """Clip by the global norm (Pascanu et al. 2013), update unless that norm is not finite, clear the gradients.

    After the reduction every rank holds (its part of) the same gradient, so the norm, and with it the decision, is the same on all.
    """
    groups = by_mesh(parameter for parameter in model.parameters() if parameter.grad is not None)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups]
    norm = torch.nn.utils.get_total_norm([one.full_tensor() if isinstance(one, DTensor) else one for one in norms])
    if clips_on_device(optimizer, norm) and not any(isinstance(group[0], DTensor) for group in groups):
        step_on_device(optimizer, norm, clip_norm)
        found = read(norm)
    else:
        if clip_norm is not None:
            for group in groups:
                torch.nn.utils.clip_grads_with_norm_(group, clip_norm, norm)
        found = read(norm)
        if math.isfinite(found):
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(found, math.isfinite(found))


def clips_on_device(optimizer: torch.optim.Optimizer, norm: Tensor) -> bool:
    return norm.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False)


def step_on_device(optimizer: torch.optim.Optimizer, norm: Tensor, clip_norm: float | None) -> None:
    """The same by torch's fused optimizers, which scale gradients themselves, and leave all as it is where they are told of a number that
    is not finite: as they do for a GradScaler.  So the host hands the step out without waiting for the norm."""
    asked: Any = optimizer
    asked.found_inf = (~norm.isfinite()).float()
    asked.grad_scale = None if clip_norm is None else ((norm + 1e-6) / clip_norm).clamp(min=1.0).float()      # what they divide by
    optimizer.step()
