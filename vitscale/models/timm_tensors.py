"""timm's tensors as ours: other names, layers in one piece or several, and numbers of a head in another order."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import CheckpointError
from vitscale.models.foreign_keys import ForeignTensors
from vitscale.recipe.schema import ConvNext, Model, Vit
from vitscale.shapes.vit import grid, num_positions, shape_of

Tensors = dict[str, Tensor]
_IDLE = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.rel_coords_log", r".*\.attn_mask", "mask_token", r"rope\..*")
# (theirs, ours): pieces that one of our layers holds one after the other; the name of the first stands for their place
_JOINED = ((("attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"), "attn.qkv.weight"),
           (("attn.q_proj.bias", "attn.k_proj.bias", "attn.v_proj.bias"), "attn.qkv.bias"),
           (("attn.q_proj.bias", "attn.v_proj.bias"), "attn.qkv.bias"), (("attn.q_bias", "attn.v_bias"), "attn.qkv.bias"),
           (("mlp.fc1_g.weight", "mlp.fc1_x.weight"), "mlp.fc1.weight"), (("mlp.fc1_g.bias", "mlp.fc1_x.bias"), "mlp.fc1.bias"))
# biases of all blocks; and what is theirs and ours inside a name of a block's
_SHARED = ("rel_pos_bias.", "shared_rel_pos.")
BIASES = ((".attn.rel_pos.mlp.fc1.", ".attn.cpb_mlp.0."), (".attn.rel_pos.mlp.fc2.", ".attn.cpb_mlp.2."),
          (".attn.rel_pos.relative_", ".attn.relative_"))


def from_timm(arguments: Mapping[str, Any], section: Model, theirs: Mapping[str, Tensor],
              shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tensors, list[str]]:
    """(timm's weights as ours, for those of `shapes` that theirs has; names of what in theirs no answer depends on).

    Raises CheckpointError naming what is left over.
    """
    ours = dict(theirs)
    if isinstance(section, Vit):
        ours = _tokens(section, _named(section, ours))
        ours |= _frequencies(ours.pop("rope.freqs"), arguments) if section.rope_type == "mixed" and "rope.freqs" in ours else {}
        if section.rope_type is not None:
            order = head_order(shape_of(section).width // shape_of(section).heads, arguments)
            ours = in_order(ours, shape_of(section).heads, order)
    known = ForeignTensors(ours)
    found = {name: known[name] for name in shapes if name in known}
    left = known.close(_IDLE)
    if isinstance(section, ConvNext):       # layers of it may be convolutions of 1 x 1
        found = {name: value.flatten(1) if re.search(r"mlp\.fc\d\.weight$", name) and value.shape[2:] == (1, 1) else value
                 for name, value in found.items()}
    return found, left


def _named(section: Vit, theirs: Tensors) -> Tensors:
    """Under our names, layers in one piece."""
    ours = {re.sub(r"\.gamma_(\d)$", r".ls\1.gamma", name): value for name, value in theirs.items()}
    for block in range(shape_of(section).depth):
        for pieces, whole in _JOINED:
            names = [f"blocks.{block}.{piece}" for piece in pieces]
            if all(name in ours for name in names):
                _put(ours, f"blocks.{block}.{whole}", torch.cat([ours.pop(name) for name in names]))
    for name in [name for name in ours if name.startswith(_SHARED)]:        # each block has its own here
        shared, last = ours.pop(name), re.sub(r"^\w+\.", "attn.rel_pos.", name)
        for block in range(shape_of(section).depth):
            _put(ours, f"blocks.{block}.{last}", shared.clone())
    for old, new in BIASES:
        ours = {name.replace(old, new): value for name, value in ours.items()}
    return ours


def _put(tensors: Tensors, name: str, value: Tensor) -> None:
    """Raises CheckpointError where something stands there already."""
    if name in tensors:
        raise CheckpointError(f"has {name} twice, once in pieces or for all blocks; only one can be meant")
    tensors[name] = value


def _frequencies(theirs: Tensor, arguments: Mapping[str, Any]) -> Tensors:
    """RoPE-Mixed's, (2, blocks, H, K / 2) along both axes, as (H, K) of each block: down, then across."""
    down, across = theirs.flip(0) if arguments.get("rope_grid_indexing") == "xy" else theirs
    return {f"blocks.{block}.attn.rope_freqs": torch.cat(pair, dim=-1) for block, pair in enumerate(zip(down, across, strict=True))}


def _tokens(section: Vit, theirs: Tensors) -> Tensors:
    """A class token that is not pooled is the first register; the places of registers go into them."""
    ours = dict(theirs)
    registers = [ours.pop(name) for name in ("cls_token", "reg_token") if name in ours and (name == "reg_token" or section.pool not in (
        "token", "token_mean"))]
    if not registers:
        return ours
    whole = torch.cat(registers, dim=1)
    table, places = ours.get("pos_embed"), num_positions(section)
    if table is not None and table.shape[1] == places + whole.shape[1]:
        first = places - grid(section) ** 2
        last = first + whole.shape[1]
        whole = whole + table[:, first:last]
        ours["pos_embed"] = torch.cat([table[:, :first], table[:, last:]], dim=1)
    return ours | {"reg_token": whole}


def head_order(width: int, arguments: Mapping[str, Any]) -> list[int]:
    """Which of timm's numbers of a head stands at each place of ours, whose pairs are (i, i + width / 2), down before across."""
    half = width // 2
    swapped = arguments.get("rope_grid_indexing") == "xy" and arguments.get("rope_type") != "mixed"
    turned = [(place + half // 2) % half if swapped else place for place in range(half)]
    if arguments.get("rope_rotate_half"):
        return [*turned, *(place + half for place in turned)]
    return [*(2 * place for place in turned), *(2 * place + 1 for place in turned)]


def in_order(tensors: Mapping[str, Tensor], heads: int, order: Sequence[int]) -> Tensors:
    """Queries and keys of every block, and their norms, with the numbers of each head in another order."""
    def turned(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (heads, -1))[:, list(order)].flatten(0, 1)

    def changed(name: str, value: Tensor) -> Tensor:
        if name.endswith("attn.qkv.weight"):
            query, key, rest = value.chunk(3)
            return torch.cat([turned(query), turned(key), rest])
        if name.endswith("attn.qkv.bias"):
            width = tensors[name.replace("bias", "weight")].shape[1]
            parts = value.split(width)
            return torch.cat([*(turned(part) for part in parts[:-1]), parts[-1]])
        return value[list(order)] if re.search(r"attn\.[qk]_norm\.(weight|bias)$", name) else value

    return {name: changed(name, value) for name, value in tensors.items()}
