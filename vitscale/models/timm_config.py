"""Which of timm's architectures, with which arguments, expresses a model section.  Our names of weights are timm's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import RecipeError
from vitscale.models.position import sincos
from vitscale.models.timm_section import embeds_class
from vitscale.recipe.schema import ConvNext, Model, Swin, Vit
from vitscale.shapes import convnext, swin
from vitscale.shapes.vit import grid, num_placed, shape_of

_POOLS = {"token": "token", "mean": "avg", "attention": "map"}


# What each class holds besides sizes and what matters in training alone: whatever else a section asks for is refused by its name.
_ANYWHERE = {"family", "size", "image", "channels", "classes", "width", "widths", "depth", "depths", "heads", "mlp", "patch", "window",
             "dropout", "head_dropout", "drop_path", "drop_path_schedule", "drop_path_group", "position_interpolation", "norm_eps"}
_HELD = {"vit": {"registers", "pool", "pool_norm", "position", "class_position", "qkv_bias", "qk_norm", "layer_scale",
                 "pool_include_prefix"},
         "swin": {"version"}, "convnext": {"version", "layer_scale"}}


def _unexpressed(section: Model) -> list[tuple[str, str]]:
    held = _ANYWHERE | _HELD.get("vit" if isinstance(section, Vit) else section.family, set())
    wrong = [(f"model.{key}", f"{value} has no expression there") for key, field in type(section).model_fields.items()
             if key not in held and (value := getattr(section, key)) != field.default]
    usual = type(section).model_fields["norm_eps"].default if "norm_eps" in type(section).model_fields else None
    if usual is not None and getattr(section, "norm_eps") != usual:     # noqa: B009  (not every family has one)
        wrong.append(("model.norm_eps", f"{getattr(section, 'norm_eps'):g} is not timm's, which is {usual:g}"))     # noqa: B009
    if isinstance(section, Vit) and section.pool not in _POOLS:
        wrong.append(("model.pool", f"{section.pool} has no expression there"))
    return wrong


def timm_architecture(section: Model) -> tuple[str, dict[str, Any]]:
    """(name, arguments) for timm.create_model.  Raises RecipeError naming each option that timm has no argument for."""
    if wrong := _unexpressed(section):
        raise RecipeError(_refusal(wrong))
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
    wrong = []
    if section.position in ("rotary", "relative"):
        wrong.append(("model.position", f"{section.position} belongs to other classes of timm's than its Vision Transformer"))
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
        "fc_norm": section.pool_norm, "no_embed_class": not embeds_class(section),
        "pos_embed": "none" if section.position == "none" else "learn",
        "pool_include_prefix": section.pool == "attention" if section.pool_include_prefix is None else section.pool_include_prefix}


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
    if isinstance(section, Vit) and section.registers and embeds_class(section):       # its registers have places too
        table, first = weights["pos_embed"], num_placed(section)
        zeros = torch.zeros(1, section.registers, table.shape[2])
        return {**weights, "pos_embed": torch.cat([table[:, :first], zeros, table[:, first:]], dim=1)}
    return dict(weights)
