"""Which parameters decay, and under muP learn more slowly: the parameter groups of an optimizer."""

from typing import Any

from torch import nn

from vitscale.models import Backbone
from vitscale.models.names import TABLES, leaf
from vitscale.optim.local import by_mesh


def decay_groups(model: Backbone, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters as torch optimizers take them: those that decay, then those that do not; an empty group is left out.
    Where some are sharded over other ranks than the rest, these are groups of their own.

    Under muP the matrices between widths, which all decay, have their learning rate scaled by base over width (`lr_scale`; Yang et al.
    2022, table 3, Adam), and their decay by its inverse, so that what decays in a step is the same at every width.

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
    scale = model.width_scale
    if scale == 1.0:
        kinds: list[tuple[list[nn.Parameter], dict[str, float]]] = [
            (decayed, {"weight_decay": weight_decay}), (spared, {"weight_decay": 0.0})]
    else:
        wide = {id(parameter) for name, parameter in model.named_parameters() if parameter.ndim == 2 and leaf(name) not in TABLES}
        kinds = [([p for p in decayed if id(p) in wide], {"weight_decay": weight_decay / scale, "lr_scale": scale}),
                 ([p for p in decayed if id(p) not in wide], {"weight_decay": weight_decay}),
                 (spared, {"weight_decay": 0.0})]
    return [{"params": alike, **options} for parameters, options in kinds for alike in by_mesh(parameters)]
