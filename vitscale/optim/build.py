"""From the recipe's optim section to a torch optimizer."""

from collections.abc import Callable
from typing import Any

import torch

from vitscale.models import Backbone
from vitscale.optim.groups import decay_groups
from vitscale.recipe import Optim


def _adamw(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel over all parameters."""
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Optim], torch.optim.Optimizer]] = {"adamw": _adamw}


def build_optimizer(model: Backbone, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters in decay and no-decay groups.

    Build it after sharding, since FSDP2 replaces the parameters, and after materialising: a fused optimizer refuses the meta device.
    """
    return OPTIMIZERS[optim.name](decay_groups(model, optim.weight_decay), optim)
