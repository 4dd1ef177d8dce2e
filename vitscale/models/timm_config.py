"""Which of timm's architectures, with which arguments, expresses a model section, and the reverse.  Our names of weights are timm's."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import CheckpointError, RecipeError
from vitscale.models.position import sincos
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, ConvNext, Model, Swin, Vit
from vitscale.shapes import convnext, swin
from vitscale.shapes.vit import grid, num_placed, shape_of

_POOLS = {"token": "token", "mean": "avg", "attention": "map"}
_VIT_NAME = re.compile(r"^(vit|deit|deit3)_([a-z0-9]+?)(_distilled)?_patch(\d+)(?:_[a-z]+)*_(\d+)")
_SWIN_NAME = re.compile(r"^swin(v2)?_([a-z]+)_(?:patch4_)?window(\d+)_(\d+)")
_CONVNEXT_NAME = re.compile(r"^convnext(v2)?_([a-z]+)")


def timm_architecture(section: Model) -> tuple[str, dict[str, Any]]:
    """(name, arguments) for timm.create_model.  Raises RecipeError naming each option that timm has no argument for."""
    common = {"in_chans": section.channels, "num_classes": section.classes}
    if isinstance(section, Swin):
        stages = swin.stages_of(section)
        name = "swin_tiny_patch4_window7_224" if section.version == 1 else "swinv2_tiny_window8_256"
        return name, common | {"img_size": section.image, "patch_size": section.patch, "window_size": section.window,
                               "embed_dim": stages[0].width, "depths": [stage.depth for stage in stages],
                               "num_heads": [stage.heads for stage in stages]}
    if isinstance(section, ConvNext):
        rooms = convnext.stages_of(section)
        if len(rooms) != 4:
            raise RecipeError(_refusal([("model.depths", f"of {len(rooms)} stages has no expression there: its ConvNeXt has four")]))
        scale = {} if section.version == 2 else {"ls_init_value": convnext.layer_scale_of(section)}
        return "convnext_tiny" if section.version == 1 else "convnextv2_tiny", common | scale | {
            "dims": [stage.width for stage in rooms], "depths": [stage.depth for stage in rooms]}
    if not isinstance(section, Vit):
        raise RecipeError(_refusal([("model.family", f"{section.family} has no expression there")]))
    return _vit(section, common)


def _refusal(wrong: list[tuple[str, str]]) -> str:
    return "\n".join(["no stock class of timm's expresses this model:", *(f"  {key}  {why}" for key, why in wrong),
                      "write it with --format safetensors instead"])


def _vit(section: Vit, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    plain = {"attention": "full", "patch_embed": "patch", "parallel": False, "gated": False, "head_hidden": None, "class_tokens": 1}
    wrong = [(f"model.{key}", f"{getattr(section, key)} has no expression there") for key, value in plain.items()
             if getattr(section, key) != value]
    if section.position in ("rotary", "relative"):
        wrong.append(("model.position", f"{section.position} belongs to other classes of timm's than its Vision Transformer"))
    if section.norm_eps != 1e-6:
        wrong.append(("model.norm_eps", f"{section.norm_eps:g} is not timm's, which is 1e-6"))
    if section.family == "deit" and section.registers:
        wrong.append(("model.registers", "do not go with a distillation token there"))
    if wrong:
        raise RecipeError(_refusal(wrong))
    shape = shape_of(section)
    arguments = common | {
        "img_size": section.image, "patch_size": section.patch, "embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads,
        "mlp_ratio": shape.mlp / shape.width, "qkv_bias": section.qkv_bias, "qk_norm": section.qk_norm, "init_values": section.layer_scale}
    if section.family == "deit":
        return "deit_base_distilled_patch16_224", arguments
    return "vit_base_patch16_224", arguments | {
        "global_pool": _POOLS[section.pool], "class_token": section.pool == "token", "reg_tokens": section.registers,
        "fc_norm": section.pool_norm, "no_embed_class": not _embeds_class(section),
        "pos_embed": "none" if section.position == "none" else "learn"}


def _embeds_class(section: Vit) -> bool:
    """Whether its table of positions has rows for what stands before the patches, registers among them."""
    return section.position == "learned" and section.class_position and section.pool == "token"


def to_timm(section: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights as timm's class has them: fixed positions become a table that could be learned."""
    if isinstance(section, Vit) and section.position == "sincos":
        table = sincos((grid(section),) * 2, shape_of(section).width)
        if section.family == "deit":        # its class has a row for each token
            table = torch.cat([torch.zeros(1, 2, table.shape[2]), table], dim=1)
        return {**weights, "pos_embed": table}
    if isinstance(section, Vit) and section.family == "deit" and not section.class_position:
        table = weights["pos_embed"]
        return {**weights, "pos_embed": torch.cat([torch.zeros(1, 2, table.shape[2]), table], dim=1)}
    if isinstance(section, Vit) and section.registers and _embeds_class(section):       # its registers have places too
        table, first = weights["pos_embed"], num_placed(section)
        zeros = torch.zeros(1, section.registers, table.shape[2])
        return {**weights, "pos_embed": torch.cat([table[:, :first], zeros, table[:, first:]], dim=1)}
    return dict(weights)


def from_timm(section: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights as ours: the places of registers go into the registers."""
    if not (isinstance(section, Vit) and section.registers and _embeds_class(section)):
        return dict(weights)
    table, first, last = weights["pos_embed"], num_placed(section), num_placed(section) + section.registers
    return {**weights, "reg_token": weights["reg_token"] + table[:, first:last],
            "pos_embed": torch.cat([table[:, :first], table[:, last:]], dim=1)}


def section_of_timm(config: Mapping[str, Any], where: str) -> Model:
    """timm's config.json -> the section that expresses it.  Raises CheckpointError for an architecture that is not known here."""
    name, arguments = str(config.get("architecture")), dict(config.get("model_args") or {})
    about = {**(config.get("pretrained_cfg") or {}), **config}
    size = about.get("input_size") or [3, 224, 224]
    values: dict[str, Any] = {"channels": arguments.get("in_chans", size[0]), "image": arguments.get("img_size", size[-1]),
                              "classes": arguments.get("num_classes", about.get("num_classes", 1000))}
    if found := _VIT_NAME.match(name):
        values |= _of_vit(found, arguments)
    elif found := _SWIN_NAME.match(name):
        values |= {"family": "swin", "version": 2 if found[1] else 1, "size": found[2], "patch": arguments.get("patch_size", 4),
                   "window": arguments.get("window_size", int(found[3]))}
        values |= _given(arguments, {"embed_dim": "width", "depths": "depths", "num_heads": "heads"})
    elif found := _CONVNEXT_NAME.match(name):
        values |= {"family": "convnext", "version": 2 if found[1] else 1, "size": found[2]}
        values |= _given(arguments, {"dims": "widths", "depths": "depths", "ls_init_value": "layer_scale"})
    else:
        raise CheckpointError(f"{where}: architecture {name!r} is none of timm's that are known here: vit_*, deit_*, deit3_*, swin_*, "
                              "swinv2_*, convnext_*, convnextv2_*")
    try:
        return check_section(FAMILIES[values["family"]], values, where)
    except RecipeError as error:
        raise CheckpointError(str(error)) from None


def _of_vit(name: re.Match[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"family": "deit" if name[3] else "vit", "size": name[2], "patch": arguments.get("patch_size", int(name[4]))}
    if name[1] == "deit3":
        values |= {"layer_scale": 1e-6, "class_position": False}
    values |= _given(arguments, {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "qkv_bias": "qkv_bias", "qk_norm": "qk_norm",
                                 "init_values": "layer_scale", "reg_tokens": "registers", "fc_norm": "pool_norm"})
    if "mlp_ratio" in arguments and "width" in values:
        values["mlp"] = int(values["width"] * arguments["mlp_ratio"])
    if "global_pool" in arguments:
        values["pool"] = {theirs: ours for ours, theirs in _POOLS.items()}.get(arguments["global_pool"], arguments["global_pool"])
        values.setdefault("pool_norm", values["pool"] == "mean")
    if "no_embed_class" in arguments and arguments.get("class_token", True):
        values["class_position"] = not arguments["no_embed_class"]
    if arguments.get("pos_embed") == "none":
        values["position"] = "none"
    return values


def _given(arguments: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: arguments[theirs] for theirs, ours in names.items() if arguments.get(theirs) is not None}
