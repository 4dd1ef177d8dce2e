"""From the recipe's optim section to a torch optimizer."""

from collections.abc import Callable
from typing import Any

import torch

from vitscale.models import Backbone
from vitscale.optim.groups import decay_groups
from vitscale.optim.lamb import Lamb
from vitscale.optim.lion import Lion
from vitscale.recipe import Optim


def _adamw(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel over all parameters."""
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def _sgd(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    """SGD with momentum betas[0]; its decay is added to the gradient, as torch and all published recipes have it."""
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.betas[0], nesterov=optim.betas[0] > 0, foreach=True)


def _lamb(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    return Lamb(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def _lion(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    return Lion(groups, lr=optim.lr, betas=optim.betas)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Optim], torch.optim.Optimizer]] = {
    "adamw": _adamw, "lamb": _lamb, "lion": _lion, "sgd": _sgd,
}


def build_optimizer(model: Backbone, optim: Optim) -> torch.optim.Optimizer:
    """The optimizer over those of `model`'s parameters that learn, in groups by their decay and their depth.

    Build it after sharding, since FSDP2 replaces the parameters, and after materialising: a fused optimizer refuses the meta device.
    """
    optimizer = OPTIMIZERS[optim.name](decay_groups(model, optim.weight_decay, optim.layer_decay, optim.patch_embed_rate), optim)
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group.get("lr_scale", 1.0)
    return optimizer
