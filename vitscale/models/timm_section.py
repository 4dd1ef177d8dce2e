"""timm's config.json and tensors -> the model section that expresses them and its weights; what ours cannot follow is refused by name.

An architecture is a class of timm's and arguments for it, which timm_architectures.json lists as timm itself passes them; a folder's own
arguments come on top.  The defaults here are those of timm's classes.  Tests compare both.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import CheckpointError, RecipeError
from vitscale.models.foreign_keys import ForeignKeys, ForeignTensors
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, ConvNext, Model, Vit
from vitscale.shapes.vit import grid, num_positions

Reader = Callable[[ForeignKeys], dict[str, Any]]
_TRAINING = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_block_rate",
             "weight_init", "fix_init", "head_init_scale")
_SIZES = ("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "always_partition")      # which other sizes are taken
_ABOUT = ("architecture", "num_features", "label_names", "label_descriptions", "labels", "model_args", "pretrained_cfg")
_PRETRAINED = """
    url file state_dict hf_hub_id hf_hub_filename source architecture tag custom_load test_input_size min_input_size fixed_input_size
    interpolation crop_pct test_crop_pct crop_mode mean std label_offset label_names label_descriptions pool_size test_pool_size first_conv
    classifier license description origin_url paper_name paper_ids notes""".split()        # noqa: SIM905  (forty quotes)
_IDLE = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.attn_mask", "mask_token")
_POOLS = {"token": "token", "avg": "mean", "map": "attention"}


@functools.cache
def architectures() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (class of timm's, arguments)."""
    table = json.loads(Path(__file__).with_name("timm_architectures.json").read_text(encoding="utf-8"))
    return {name: (kind, arguments) for kind, names in table.items() for name, arguments in names.items()}


def section_of_timm(config: Mapping[str, Any], where: str) -> Model:
    """The section.  Raises CheckpointError naming every key that ours cannot follow."""
    name = config.get("architecture")
    kind, arguments = architectures().get(str(name), ("", {}))
    if kind not in READERS:
        raise CheckpointError(f"{where}: architecture {name!r} is none of timm's that are known here" + (
            f": its class {kind} is not expressed" if kind else f" (those of {', '.join(READERS)})"))
    outer = ForeignKeys(config)
    given, about = outer.inner("model_args"), outer.inner("pretrained_cfg")
    size = about.take("input_size", [3, 224, 224])
    keys = ForeignKeys({"img_size": size[-2:], "in_chans": size[0], **_of_config(outer, about), **arguments, **given.values}, "model_args.")
    given.idle(*given.values)
    about.idle(*_PRETRAINED)
    outer.idle(*_ABOUT)
    try:
        values = {"channels": keys.take("in_chans", 3), "classes": keys.take("num_classes", 1000)} | READERS[kind](keys)
        keys.idle("device", "dtype", *_TRAINING, *_SIZES)
        _agree(outer, keys)
        outer.adopt(keys)
        outer.close(where)
        return check_section(FAMILIES[values["family"]], values, where)
    except (RecipeError, CheckpointError) as error:
        raise CheckpointError(str(error) if where in str(error) else f"{where}: {error}") from None


def _of_config(outer: ForeignKeys, about: ForeignKeys) -> dict[str, Any]:
    """The arguments that timm takes from elsewhere in the file where model_args has none."""
    found = {key: about.take(key, None) for key in ("num_classes", "global_pool")} | {"num_classes": outer.take("num_classes", None)}
    return {key: value for key, value in found.items() if value is not None}


def _agree(outer: ForeignKeys, keys: ForeignKeys) -> None:
    """What the file says of its model for information alone must not contradict what its model is built from."""
    said, built = outer.take("global_pool", None), keys.values.get("global_pool", keys.defaults.get("global_pool"))
    if said is not None and said != built:
        outer.refuse("global_pool", f"{said!r} is not what model_args build, {built!r}; save the folder anew with timm 1.0.31 or newer")


def _side(keys: ForeignKeys, key: str, default: int) -> Any:
    value = keys.take(key, default)
    if isinstance(value, (list, tuple)):
        if not value or any(one != value[0] for one in value):
            keys.refuse(key, f"{value!r} is not square")
            return default
        return value[0]
    return value


def _activation(keys: ForeignKeys, *default: Any) -> None:
    """Every model here has the exact GELU."""
    keys.must("act_layer", *default, "gelu", "GELU")


def _vit(keys: ForeignKeys) -> dict[str, Any]:
    _activation(keys, None)
    keys.must("norm_layer", None, "LayerNorm(eps=1e-06)", "LayerNorm", "layernorm")
    for key, default in {"scale_attn_norm": False, "scale_mlp_norm": False, "proj_bias": True, "pre_norm": False, "final_norm": True,
                         "embed_layer": "PatchEmbed", "embed_norm_layer": None, "block_fn": "Block", "mlp_layer": "Mlp",
                         "attn_layer": "Attention"}.items():
        keys.must(key, default)
    width = keys.take("embed_dim", 768)
    token, registers, pool = keys.take("class_token", True), keys.take("reg_tokens", 0), keys.take("global_pool", "token")
    if pool not in _POOLS:
        keys.refuse("global_pool", f"{pool!r} is not expressed here; {', '.join(_POOLS)} are")
    if token and pool != "token":
        keys.refuse("class_token", f"true is not expressed here with global_pool {pool!r}")
    if pool == "map" and not keys.take("pool_include_prefix", False) and registers:
        keys.refuse("pool_include_prefix", "false is not expressed here with reg_tokens: attention pooling sees all tokens")
    keys.idle("pool_include_prefix")
    norm = keys.take("fc_norm", None)
    positions = keys.take("pos_embed", "learn")
    if positions not in ("learn", "none", ""):
        keys.refuse("pos_embed", f"{positions!r} is not known here")
    return {
        "family": "vit", "image": _side(keys, "img_size", 224), "patch": _side(keys, "patch_size", 16), "width": width,
        "depth": keys.take("depth", 12), "heads": keys.take("num_heads", 12), "mlp": int(width * keys.take("mlp_ratio", 4.0)),
        "qkv_bias": keys.take("qkv_bias", True), "qk_norm": keys.take("qk_norm", False), "layer_scale": keys.take("init_values", None),
        "registers": registers, "pool": _POOLS.get(pool, "token"), "pool_norm": pool == "avg" if norm is None else norm,
        "class_position": not keys.take("no_embed_class", False), "position": "learned" if positions == "learn" else "none"}


def _distilled(keys: ForeignKeys) -> dict[str, Any]:
    keys.must("reg_tokens", 0)
    keys.must("class_token", True)
    keys.must("global_pool", "token")
    return _vit(keys) | {"family": "deit"}


def _swin(keys: ForeignKeys) -> dict[str, Any]:
    for key, default in {"global_pool": "avg", "head_dim": None, "mlp_ratio": 4.0, "qkv_bias": True}.items():
        keys.must(key, default)
    keys.must("norm_layer", "LayerNorm", "layernorm", None)
    keys.must("embed_layer", "PatchEmbed")
    return {"family": "swin", "version": 1, "image": _side(keys, "img_size", 224), "patch": _side(keys, "patch_size", 4),
            "window": _side(keys, "window_size", 7), "width": keys.take("embed_dim", 96), "depths": keys.take("depths", (2, 2, 6, 2)),
            "heads": keys.take("num_heads", (3, 6, 12, 24))}


def _swin_v2(keys: ForeignKeys) -> dict[str, Any]:
    _activation(keys)
    if any(given := keys.take("pretrained_window_sizes", (0, 0, 0, 0))):
        keys.refuse("pretrained_window_sizes", f"{given!r} is not expressed here: offsets are counted in the model's own window")
    return _swin(keys) | {"version": 2}


def _convnext(keys: ForeignKeys) -> dict[str, Any]:
    _activation(keys)
    for key, default in {"global_pool": "avg", "output_stride": 32, "kernel_sizes": 7, "stem_type": "patch", "patch_size": 4,
                         "head_norm_first": False, "head_hidden_size": None, "conv_bias": True}.items():
        keys.must(key, default)
    keys.must("norm_layer", None, "layernorm", "layernorm2d", "LayerNorm")
    keys.must("norm_eps", None, 1e-6)
    keys.idle("conv_mlp")       # the same as convolutions of 1 x 1
    grn, scale = keys.take("use_grn", False), keys.take("ls_init_value", 1e-6)
    if grn != (scale is None):
        keys.refuse("ls_init_value", f"{scale!r} is not expressed here {'with' if grn else 'without'} use_grn")
    values = {"family": "convnext", "version": 2 if grn else 1, "image": _side(keys, "img_size", 224),
              "widths": keys.take("dims", (96, 192, 384, 768)), "depths": keys.take("depths", (3, 3, 9, 3))}
    return values if grn else values | {"layer_scale": scale}


READERS: dict[str, Reader] = {              # by class of timm's
    "VisionTransformer": _vit, "VisionTransformerDistilled": _distilled, "SwinTransformer": _swin, "SwinTransformerV2": _swin_v2,
    "ConvNeXt": _convnext,
}


def from_timm(section: Model, theirs: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[str]]:
    """(timm's weights as ours, for those of `shapes` that theirs has; names of what in theirs no answer depends on).

    The places of registers go into the registers.  Raises CheckpointError naming what is left over.
    """
    known = ForeignTensors(theirs)
    ours = {name: known[name] for name in shapes if name in known}
    left = known.close(_IDLE)
    if isinstance(section, ConvNext):       # layers of it may be convolutions of 1 x 1
        ours = {name: value.flatten(1) if re.search(r"mlp\.fc\d\.weight$", name) and value.shape[2:] == (1, 1) else value
                for name, value in ours.items()}
    if isinstance(section, Vit) and section.registers and "pos_embed" in ours:
        table, first = ours["pos_embed"], num_positions(section) - grid(section) ** 2
        last = first + section.registers
        if table.shape[1] == num_positions(section) + section.registers:        # theirs have places too
            ours |= {"reg_token": ours["reg_token"] + table[:, first:last],
                     "pos_embed": torch.cat([table[:, :first], table[:, last:]], dim=1)}
    return ours, left


def embeds_class(section: Vit) -> bool:
    """Whether timm's table of positions has rows for what stands before the patches, registers among them."""
    return section.position == "learned" and section.class_position and section.pool == "token"
