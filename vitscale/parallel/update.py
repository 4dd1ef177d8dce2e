"""One optimizer update: clipped, and left out on all ranks together when the gradient is not finite."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vitscale.optim.local import by_mesh


@dataclass(frozen=True)
class Update:
    """What one optimizer step did.  `applied` is False when the gradient was not finite, on all ranks alike."""

    grad_norm: float
    applied: bool


def clip_and_step(model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> Update:
    """Clip by the global norm (Pascanu et al. 2013), update unless that norm is not finite, clear the gradients.

    After the reduction every rank holds (its part of) the same gradient, so the norm, and with it the decision, is the same on all.
    """
    groups = by_mesh(parameter for parameter in model.parameters() if parameter.grad is not None)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups]
    norm = torch.nn.utils.get_total_norm([one.full_tensor() if isinstance(one, DTensor) else one for one in norms])
    if clip_norm is not None:
        for group in groups:
            torch.nn.utils.clip_grads_with_norm_(group, clip_norm, norm)
    value = float(norm)
    applied = value == value and abs(value) != float("inf")
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(value, applied)
