"""Which parameters decay: the two parameter groups of an optimizer."""

from typing import Any

from torch import nn

from vitscale.models import Backbone
from vitscale.optim.local import by_mesh


def decay_groups(model: Backbone, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters as torch optimizers take them: those that decay, then those that do not; an empty group is left out.
    Where some are sharded over other ranks than the rest, these are groups of their own.

    Each trainable parameter stands in exactly one group, in the order of `named_parameters()`.  `no_decay()` may name only parameters
    that exist: a name left behind by a renaming would silently decay what should not.
    """
    exempt = model.no_decay()
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    names = set()
    for name, parameter in model.named_parameters():
        names.add(name)
        if parameter.requires_grad:
            (spared if name in exempt else decayed).append(parameter)
    assert exempt <= names, f"no_decay() names no parameter of the model: {sorted(exempt - names)}"
    return [{"params": alike, "weight_decay": decay} for parameters, decay in ((decayed, weight_decay), (spared, 0.0))
            for alike in by_mesh(parameters)]
