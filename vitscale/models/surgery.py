"""Blocks, registers and tokens of a trained model added, dropped or folded away, for another one that starts from it."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitscale.counts import plural
from vitscale.models.attention import whole_bias
from vitscale.models.backbone import Backbone
from vitscale.models.init import initial_value

_BLOCK = re.compile(r"^((?:layers\.\d+\.|stages\.\d+\.|)blocks)\.(\d+)\.")
Weights = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


def operated(weights: Weights, model: nn.Module, shapes: Shapes, notes: list[str]) -> None:
    """In place; `notes` say what was done.  What needs nothing stays as it is."""
    _depth(weights, shapes, notes)
    _layer_scale(weights, shapes, notes)
    _key_bias(weights, shapes, notes)
    if isinstance(model, Backbone):
        _registers(weights, model, shapes, notes)
    _distillation(weights, shapes, notes)


def source_of(block: int, now: int, before: int, pairs: bool = False) -> int:
    """Which of `before` blocks the new one begins as: of more blocks they are stacked, begun anew when they end (Gong et al. 2019,
    Efficient training of BERT by progressively stacking); of fewer those that lie evenly among them, first and last included.

    `pairs`: Swin's, of which every second one has shifted windows, stay two by two.
    """
    if pairs and before > 1:
        return 2 * source_of(block // 2, -(-now // 2), before // 2) + block % 2
    if now >= before:
        return block % before
    return round(block * (before - 1) / (now - 1)) if now > 1 else 0


def _depths(names: Mapping[str, object]) -> dict[str, int]:
    """How many blocks there are of each list."""
    found: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.match, names)):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _depth(weights: Weights, shapes: Shapes, notes: list[str]) -> None:
    before, now = _depths(weights), _depths(shapes)
    for blocks, count in now.items():
        had = before.get(blocks, count)
        if had == count:
            continue
        sources = [source_of(block, count, had, blocks.startswith("layers.")) for block in range(count)]
        old = {name: weights.pop(name) for name in list(weights) if name.startswith(f"{blocks}.")}
        for block, source in enumerate(sources):
            weights.update({f"{blocks}.{block}.{name.removeprefix(f'{blocks}.{source}.')}": value.clone()
                            for name, value in old.items() if name.startswith(f"{blocks}.{source}.")})
        notes.append(f"{blocks}: {count} of {had}, which begin as {', '.join(map(str, sources))}")


def _layer_scale(weights: Weights, shapes: Shapes, notes: list[str]) -> None:
    """Added, it begins at 1, at which answers stay what they are; left out, it goes into the layers before it."""
    added = [name for name in shapes if re.search(r"\.ls\d\.gamma$", name) and name not in weights]
    gone = [name for name in weights if re.search(r"\.ls\d\.gamma$", name) and name not in shapes]
    for name in added:
        weights[name] = torch.ones(shapes[name])
    for name in gone:
        gamma = weights.pop(name)
        layer = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", "mlp.fc2")
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * gamma[:, None]
        weights[f"{layer}.bias"] = weights[f"{layer}.bias"] * gamma
    if added:
        notes.append("LayerScale is added, and begins at 1 so that answers stay what they were, not at model.layer_scale")
    if gone:
        notes.append("LayerScale goes into the layers before it: answers stay what they were")


def _key_bias(weights: Weights, shapes: Shapes, notes: list[str]) -> None:
    """Keys without a bias are keys whose bias is 0; one that there was changes answers only where positions turn keys."""
    more, fewer = [], []
    for name, shape in shapes.items():
        if name.endswith("attn.qkv.bias") and name in weights:
            more += [name] if 3 * len(weights[name]) == 2 * shape[0] else []
            fewer += [name] if 2 * len(weights[name]) == 3 * shape[0] else []
    for name in more:
        weights[name] = whole_bias(weights[name])
    for name in fewer:
        query, _, value = weights[name].chunk(3)
        weights[name] = torch.cat([query, value])
    if more:
        notes.append("keys have a bias now, which begins at 0")
    if fewer:
        notes.append("the bias of keys is left behind")


def _registers(weights: Weights, model: Backbone, shapes: Shapes, notes: list[str]) -> None:
    wanted, given = shapes.get("reg_token"), weights.get("reg_token")
    if wanted is None and given is not None:
        del weights["reg_token"]
        notes.append(f"{plural(given.shape[1], 'register')} left behind")
    elif wanted is not None and (given is None or given.shape[1] != wanted[1]) and (given is None or given.shape[2] == wanted[2]):
        begun = initial_value(model, "reg_token", wanted, seed=0)
        count = 0 if given is None else min(given.shape[1], wanted[1])
        weights["reg_token"] = begun if given is None else torch.cat([given[:, :count], begun[:, count:]], dim=1)
        added, dropped = wanted[1] - count, 0 if given is None else given.shape[1] - count
        notes.append(f"{plural(added, 'register')} added, at initial values" if added else f"{dropped} of the registers are left behind")


def _distillation(weights: Weights, shapes: Shapes, notes: list[str]) -> None:
    """A distilled model goes on as a plain one by its class token, and a plain one's class token begins as both."""
    if "dist_token" in weights and "dist_token" not in shapes:
        for name in ("dist_token", "head_dist.weight", "head_dist.bias"):
            weights.pop(name, None)
        notes.append("the distillation token and its head are left behind")
    elif "dist_token" in shapes and "dist_token" not in weights and "cls_token" in weights:
        weights["dist_token"] = weights["cls_token"][:, :1].clone()
        notes.append("the distillation token begins as the class token")
