"""Which parameters learn, which decay, and how fast each learns: the parameter groups of an optimizer."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from vitscale.errors import RecipeError
from vitscale.models import Backbone
from vitscale.models.names import HEAD, PRETRAINING, TABLES, depth_of, leaf
from vitscale.optim.local import by_mesh


def decay_groups(model: Backbone, weight_decay: float, layer_decay: float = 1.0, patch_embed_rate: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters as torch optimizers take them: those that decay, then those that do not; an empty group is left out.
    Where some are sharded over other ranks than the rest, these are groups of their own.

    layer_decay: below 1 a parameter learns at layer_decay ** (depth of the head - its own depth) times the rate, its group's `lr_scale`
    (Clark et al. 2020, ELECTRA; of Vision Transformers Bao et al. 2022, BEiT); heads of pretraining at the rate itself (DINOv2).
    patch_embed_rate: the patch embedding at so many times that (Oquab et al. 2024, DINOv2).
    Under muP the matrices between widths, which all decay, have their learning rate scaled by base over width (`lr_scale`; Yang et al.
    2022, table 3, Adam), and their decay by its inverse, so that what decays in a step is the same at every width.

    Each trainable parameter stands in exactly one group, in the order of `named_parameters()`.  `no_decay()` may name only parameters
    that exist: a name left behind by a renaming would silently decay what should not.
    """
    exempt = model.no_decay()
    units = [name for name in unit_names(model) if not f"{name}.".startswith(PRETRAINING)] if layer_decay < 1 else []
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    names = set()
    for name, parameter in model.named_parameters():
        names.add(name)
        if parameter.requires_grad:
            scale = layer_decay ** (len(units) + 1 - depth_of(name, units)) if layer_decay < 1 else 1.0
            scale *= patch_embed_rate if name.startswith("patch_embed.") else 1.0
            wide = model.width_scale if parameter.ndim == 2 and name not in exempt and leaf(name) not in TABLES else 1.0
            groups.setdefault((0.0 if name in exempt else weight_decay / wide, scale * wide), []).append(parameter)
    assert exempt <= names, f"no_decay() names no parameter of the model: {sorted(exempt - names)}"
    order = sorted(groups, key=lambda key: (-key[0], -key[1]))
    scaled = min(layer_decay, patch_embed_rate) < 1 or model.width_scale != 1.0
    return [{"params": alike, "weight_decay": decay, **({"lr_scale": scale} if scaled else {})}
            for decay, scale in order for alike in by_mesh(groups[decay, scale])]


def freeze_(model: Backbone, what: int | Literal["backbone"]) -> int:
    """Let the first blocks (of Swin and ConvNeXt: stages), and what stands before them, or all but the head, stay as they are.

    Call it before the optimizer is built and before an engine adopts the model.  Returns how many numbers are frozen.  Raises RecipeError.
    """
    if what == 0:
        return 0
    units, last = unit_names(model), -1
    if what != "backbone":
        stages = _stages(units)
        if what > len(stages):
            kind = "blocks" if len(stages) == len(units) else "stages"
            raise RecipeError(f"optim.freeze: {what} of the model's {len(stages)} {kind}; it wants {len(stages)} at most, or backbone")
        last = sum(stages[:what])
    frozen = 0
    for name, parameter in model.named_parameters():
        stays = not name.startswith((*HEAD, "head")) if what == "backbone" else depth_of(name, units) <= last
        if stays:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen


def unit_names(model: nn.Module) -> list[str]:
    """The names of a model's units, in order."""
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(unit)] for unit in model.units()]      # type: ignore[operator]


def _stages(units: Sequence[str]) -> list[int]:
    """How many units each stage has; a block that belongs to none is one by itself."""
    counts: dict[str, int] = {}
    for unit in units:
        stage = unit.partition(".blocks.")[0]       # `layers.0.blocks.1`; a Vision Transformer's is `blocks.1`
        counts[stage] = counts.get(stage, 0) + 1
    return list(counts.values())
