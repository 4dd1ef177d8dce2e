"""timm's config.json and tensors -> the model section that expresses them and its weights; what ours cannot follow is refused by name.

An architecture is a class of timm's and arguments for it, which timm_architectures.json lists as timm itself passes them; a folder's own
arguments come on top.  The defaults here are those of timm's classes.  Tests compare both.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitscale.errors import CheckpointError, RecipeError
from vitscale.models.foreign_keys import ForeignKeys
from vitscale.models.timm_arguments import POOLS, activation, after_branches, norm_eps, pooling, side
from vitscale.models.timm_eva import beit, eva, relpos
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, Model, Vit

Reader = Callable[[ForeignKeys], dict[str, Any]]
_TRAINING = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_block_rate",
             "weight_init", "fix_init", "head_init_scale")
_SIZES = ("dynamic_img_size", "dynamic_img_pad", "strict_img_size")      # which other sizes are taken
_ABOUT = ("vitscale_model", "architecture", "num_features", "label_names", "label_descriptions", "labels", "model_args", "pretrained_cfg")
_PRETRAINED = """
    url file state_dict hf_hub_id hf_hub_filename source architecture tag custom_load test_input_size min_input_size fixed_input_size
    interpolation crop_pct test_crop_pct crop_mode mean std label_offset label_names label_descriptions pool_size test_pool_size first_conv
    classifier license description origin_url paper_name paper_ids notes""".split()        # noqa: SIM905  (forty quotes)
_GATED = "GluMlp(act_layer=SiLU, gate_last=False)"


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
        keys.must("in_chans", 3, 1)
        values = {"channels": keys.take("in_chans", 3), "classes": keys.take("num_classes", 1000)} | READERS[kind](keys)
        keys.idle("device", "dtype", *_TRAINING, *_SIZES)
        _agree(outer, about, keys)
        outer.adopt(keys)
        outer.close(where)
        return check_section(FAMILIES[values["family"]], values, where, contradictions=model_contradictions)
    except (RecipeError, CheckpointError) as error:
        raise CheckpointError(str(error) if where in str(error) else f"{where}: {error}") from None


def _of_config(outer: ForeignKeys, about: ForeignKeys) -> dict[str, Any]:
    """The arguments that timm takes from elsewhere in the file where model_args has none."""
    found = {key: about.take(key, None) for key in ("num_classes", "global_pool")} | {"num_classes": outer.take("num_classes", None)}
    return {key: value for key, value in found.items() if value is not None}


def _agree(outer: ForeignKeys, about: ForeignKeys, keys: ForeignKeys) -> None:
    """What the file says of its model for information alone must not contradict what its model is built from."""
    first, second, classes = (some.take("num_classes", default) for some, default in ((outer, None), (about, None), (keys, 1000)))
    if (said := second if first is None else first) not in (None, classes):
        outer.refuse("num_classes", f"{said!r} is not what model_args build, {classes!r}: timm would draw a classifier anew")
    names = outer.take("label_names", None)
    if names and classes and not (isinstance(names, (list, tuple)) and len(names) == classes):
        outer.refuse("label_names", f"does not name the {classes!r} classes, one each")
    said, built = outer.take("global_pool", None), keys.values.get("global_pool", keys.defaults.get("global_pool"))
    if said is not None and said != built:
        outer.refuse("global_pool", f"{said!r} is not what model_args build, {built!r}; save the folder anew with timm 1.0.31 or newer")


def _vit(keys: ForeignKeys) -> dict[str, Any]:
    for key, default in {"proj_bias": True, "embed_layer": "PatchEmbed", "embed_norm_layer": None,
                         "attn_layer": "Attention"}.items():
        keys.must(key, default)
    post, scale = after_branches(keys, "Block", "ResPostBlock"), keys.take("init_values", None)
    gated = keys.take("mlp_layer", "Mlp")
    if gated not in ("Mlp", _GATED):
        keys.refuse("mlp_layer", f"{gated!r} is not expressed here; 'Mlp' and {_GATED!r} are")
    pool, registers = pooling(keys, "token", keys.take("reg_tokens", 0))
    prefix = keys.take("pool_include_prefix", False)
    width, norm, last = keys.take("embed_dim", 768), keys.take("fc_norm", None), keys.take("final_norm", True)
    positions = keys.take("pos_embed", "learn")
    if positions not in ("learn", "none", ""):
        keys.refuse("pos_embed", f"{positions!r} is not known here")
    hidden, act = int(width * keys.take("mlp_ratio", 4.0)), activation(keys, None)
    if gated == _GATED and (act != "silu" or pool == "map"):
        keys.refuse("act_layer", f"{act} is not expressed here with a gate, which is silu" if act != "silu" else "silu is not expressed "
                    "here in attention pooling beside gated MLPs")
    return {
        "family": "vit", "image": side(keys, "img_size", 224), "patch": side(keys, "patch_size", 16), "width": width,
        "depth": keys.take("depth", 12), "heads": keys.take("num_heads", 12), "mlp": hidden // 2 if gated == _GATED else hidden,
        "gated": gated == _GATED, "hidden_act": "gelu" if gated == _GATED else act, "norm_eps": norm_eps(keys, None),
        "qkv_bias": keys.take("qkv_bias", True), "qk_norm": keys.take("qk_norm", False), "layer_scale": None if post else scale,
        "post_norm": post, "scale_attn_norm": keys.take("scale_attn_norm", False), "scale_mlp_norm": keys.take("scale_mlp_norm", False),
        "pre_norm": keys.take("pre_norm", False), "registers": registers, "pool": POOLS.get(pool, "token"), "final_norm": last,
        "pool_norm": last and (pool == "avg" if norm is None else norm), "pool_include_prefix": prefix if pool in ("avg", "map") else None,
        "class_position": not keys.take("no_embed_class", False), "position": "learned" if positions == "learn" else "none",
        "position_interpolation": "bicubic_antialias"}


def _distilled(keys: ForeignKeys) -> dict[str, Any]:
    keys.must("reg_tokens", 0)
    keys.must("class_token", True)
    keys.must("global_pool", "token")
    keys.must("fc_norm", None, False, why="leaves both tokens without a norm, which is not expressed here")
    keys.must("pos_embed", "learn", why="is nothing to its class, which has a table in any case")
    if keys.take("num_classes", 1000) == 0:
        keys.refuse("num_classes", "0 is not expressed here: the class gives the mean of both tokens then")
    return _vit(keys) | {"family": "deit"}


def _swin(keys: ForeignKeys) -> dict[str, Any]:
    for key, default in {"global_pool": "avg", "head_dim": None, "mlp_ratio": 4.0, "qkv_bias": True,
                         "always_partition": False}.items():
        keys.must(key, default)
    keys.must("embed_layer", "PatchEmbed")
    windows = keys.take("window_size", 7)
    various = isinstance(windows, (list, tuple)) and (len(windows) > 2 or isinstance(windows[0], (list, tuple)))
    if various:
        pairs = [tuple(one) if isinstance(one, (list, tuple)) else (one, one) for one in windows]
        if any(len(set(pair)) != 1 for pair in pairs):
            keys.refuse("window_size", f"{windows!r} is not square")
        windows = tuple(pair[0] for pair in pairs)
    return {"family": "swin", "version": 1, "image": side(keys, "img_size", 224), "patch": side(keys, "patch_size", 4),
            "norm_eps": norm_eps(keys, "LayerNorm", 1e-5), "width": keys.take("embed_dim", 96),
            "depths": keys.take("depths", (2, 2, 6, 2)), "heads": keys.take("num_heads", (3, 6, 12, 24)),
            **({"windows": windows} if various else {"window": side(keys, "window_size", 7)})}


def _swin_v2(keys: ForeignKeys) -> dict[str, Any]:
    given = keys.take("pretrained_window_sizes", (0, 0, 0, 0))
    return {"hidden_act": activation(keys, "gelu"), "pretrained_windows": given if any(given) else None} | _swin(keys) | {"version": 2}


def _convnext(keys: ForeignKeys) -> dict[str, Any]:
    for key, default in {"global_pool": "avg", "output_stride": 32, "patch_size": 4, "head_norm_first": False, "conv_bias": True}.items():
        keys.must(key, default)
    eps, own = norm_eps(keys, None), keys.take("norm_eps", None)
    stem = keys.take("stem_type", "patch")
    if stem not in ("patch", "overlap", "overlap_tiered"):
        keys.refuse("stem_type", f"{stem!r} is not expressed here; patch, overlap, overlap_tiered are")
    keys.idle("conv_mlp")       # the same as convolutions of 1 x 1
    grn, scale = keys.take("use_grn", False), keys.take("ls_init_value", 1e-6)
    return {"family": "convnext", "version": 2 if scale is None else 1, "image": side(keys, "img_size", 224), "stem": stem,
            "widths": keys.take("dims", (96, 192, 384, 768)), "depths": keys.take("depths", (3, 3, 9, 3)), "layer_scale": scale,
            "use_grn": grn, "kernel": side(keys, "kernel_sizes", 7, "of several sizes are not expressed here; one for all is"),
            "head_hidden": keys.take("head_hidden_size", None),
            "hidden_act": activation(keys, "gelu"), "norm_eps": eps if own is None else own}


READERS: dict[str, Reader] = {              # by class of timm's
    "VisionTransformer": _vit, "VisionTransformerDistilled": _distilled, "SwinTransformer": _swin, "SwinTransformerV2": _swin_v2,
    "ConvNeXt": _convnext, "Eva": eva, "Beit": beit, "VisionTransformerRelPos": relpos,
}


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm builds the model of: its architecture's arguments, and the folder's own on top."""
    return architectures()[str(config["architecture"])][1] | dict(config.get("model_args") or {})


def embeds_class(section: Vit) -> bool:
    """Whether timm's table of positions has rows for what stands before the patches, registers among them."""
    return section.position == "learned" and section.class_position and section.pool == "token"
