"""What arguments of timm's classes say of sizes, norms, activations and pooling."""

import re
from typing import Any

from vitscale.models.foreign_keys import ForeignKeys

POOLS = {"token": "token", "avg": "mean", "map": "attention"}
_ACTIVATIONS = {"GELU": "gelu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "SiLU": "silu",
                "swish": "silu", "relu": "relu", "ReLU": "relu"}


def after_branches(keys: ForeignKeys, before: str, after: str) -> bool:
    """Whether norms follow attention and MLP, which the classes of blocks tell, `before` and `after`."""
    kind = keys.take("block_fn", before)
    if kind not in (before, after):
        keys.refuse("block_fn", f"{kind!r} is not expressed here; {before!r} and {after!r} are")
    return kind == after


def side(keys: ForeignKeys, key: str, default: int, otherwise: str = "is not square") -> Any:
    """A number of pixels, or a list with the same in each place; what is said of another list."""
    value = keys.take(key, default)
    if isinstance(value, (list, tuple)):
        if not value or any(one != value[0] for one in value):
            keys.refuse(key, f"{value!r} {otherwise}")
            return default
        return value[0]
    if value == 0 and keys.values.get(key) is not None:
        keys.refuse(key, f"{value!r} is no size")
    return default if value is None else value


def activation(keys: ForeignKeys, default: str | None) -> str:
    """Of the MLPs; the recipe's name."""
    value = keys.take("act_layer", default)
    if value is not None and value not in _ACTIVATIONS:
        keys.refuse("act_layer", f"{value!r} is not expressed here; {', '.join(sorted(set(_ACTIVATIONS.values())))} are")
    return _ACTIVATIONS.get(value, "gelu")


def norm_eps(keys: ForeignKeys, default: str | None, eps: float = 1e-6) -> float:
    """Of every LayerNorm; `eps`: where its name says none."""
    value = keys.take("norm_layer", default)
    found = re.fullmatch(r"(?:LayerNorm|layernorm|layernorm2d)(?:\(eps=([0-9.e+-]+)\))?", value or "LayerNorm")
    if found is None:
        keys.refuse("norm_layer", f"{value!r} is not expressed here; LayerNorm is")
    return float(found[1]) if found and found[1] else eps


def pooling(keys: ForeignKeys, default: str, registers: int, always: bool = False, token: bool = True) -> tuple[str, int]:
    """(pooling, registers: a class token that is not pooled is the first of them).  `always`: the class has a class token; `token`: whether
    it has one where nothing is said."""
    pool, token = keys.take("global_pool", default), always or keys.take("class_token", token)
    if pool not in POOLS:
        keys.refuse("global_pool", f"{pool!r} is not expressed here; {', '.join(POOLS)} are")
    return pool, registers + (token and pool != "token")
