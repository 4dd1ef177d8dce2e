"""To timm, for export: which of its architectures, with which arguments, expresses a model section; our weights as its class has them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import RecipeError
from vitscale.models.attention import whole_bias
from vitscale.models.position import sincos
from vitscale.models.timm_section import embeds_class
from vitscale.models.timm_tensors import BIASES, in_order
from vitscale.recipe.schema import ConvNext, Model, Swin, Vit
from vitscale.shapes import convnext, swin
from vitscale.shapes.vit import grid, is_rotary, num_placed, pools_prefix, shape_of

Wrong = list[tuple[str, str]]
_POOLS = {"token": "token", "mean": "avg", "attention": "map"}
# keys that every class has an argument for, or that matter in training alone, or at another size
_ANYWHERE = {"family", "size", "image", "channels", "classes", "width", "widths", "depth", "depths", "heads", "mlp", "patch", "window",
             "dropout", "head_dropout", "drop_path", "drop_path_schedule", "drop_path_group", "position_interpolation", "norm_eps",
             "hidden_act", "layer_scale", "version", "rope_shift", "rope_jitter", "rope_rescale"}
_BOTH = {"registers", "pool", "pool_norm", "position", "class_position", "qkv_bias", "key_bias", "scale_mlp_norm", "pool_include_prefix"}
_MOST = _BOTH | {"qk_norm", "pre_norm", "final_norm", "scale_attn_norm", "gated", "post_norm"}
# by class, what it holds besides; whatever else a section asks for is refused by its name
_HELD: dict[str, set[str]] = {
    "VisionTransformer": _MOST, "VisionTransformerDistilled": _MOST - {"post_norm"}, "Beit": _BOTH,
    "VisionTransformerRelPos": _BOTH | {"qk_norm", "post_norm", "relative_mlp"},
    "Eva": _MOST | {"rope_type", "rope_temperature", "rope_offset", "rope_grid", "pool_heads", "pool_mlp"},
    "SwinTransformer": {"windows"}, "SwinTransformerV2": {"windows", "pretrained_windows"},
    "ConvNeXt": {"use_grn", "stem", "kernel", "head_hidden"}}
# what none of its Vision Transformers has
_EVERY: dict[str, tuple[Any, ...]] = {
    "attention": ("full",), "patch_embed": ("patch",), "parallel": (False,), "head_hidden": (None,), "class_tokens": (1,),
    "mup_base_width": (None,), "mup_base_head_width": (None,), "pool": tuple(_POOLS)}
_RELATIVE: dict[str, tuple[Any, ...]] = {
    "rope_type": (None,), "position": ("relative",), "norm_eps": (1e-6,), "family": ("vit",), "gated": (False,), "pre_norm": (False,),
    "hidden_act": ("gelu",), "pool": ("token", "mean"), "final_norm": (True,), "scale_attn_norm": (False,),
    "pool_include_prefix": (None, False)}
# by class: keys of which it has only these values
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "VisionTransformer": {"rope_type": (None,), "position": ("learned", "sincos", "none"), "pool_heads": (None,), "pool_mlp": (None,),
                          "norm_eps": (1e-6, 1e-5)},
    "VisionTransformerDistilled": {"rope_type": (None,), "position": ("learned", "sincos"), "registers": (0,), "gated": (False,),
                                   "norm_eps": (1e-6,), "pool": ("token",)},
    "Eva": {"position": ("rotary", "learned", "none"), "hidden_act": ("gelu",), "norm_eps": (1e-6, 1e-5), "family": ("vit",)},
    "Beit": _RELATIVE, "VisionTransformerRelPos": _RELATIVE | {"scale_mlp_norm": (False,)},
}


def timm_architecture(section: Model) -> tuple[str, dict[str, Any]]:
    """(name, arguments) for timm.create_model.  Raises RecipeError naming each option that timm has no argument for."""
    common: dict[str, Any] = {"in_chans": section.channels, "num_classes": section.classes}
    if isinstance(section, Swin):
        _check("SwinTransformer" if section.version == 1 else "SwinTransformerV2", section,
               {"norm_eps": (1e-5,), **({"hidden_act": ("gelu",)} if section.version == 1 else {})})
        return _swin(section, common)
    if isinstance(section, ConvNext):
        if len(convnext.stages_of(section)) != 4:
            raise RecipeError(_refusal([("model.depths", f"of {len(convnext.stages_of(section))} stages has no expression there: its "
                                         "ConvNeXt has four")]))
        _check("ConvNeXt", section, {})
        return _convnext(section, common)
    if not isinstance(section, Vit):
        raise RecipeError(_refusal([("model.family", f"{section.family} has no expression there")]))
    kind = class_of(section)
    _check(kind, section, _EVERY | _ONLY[kind], _together(kind, section))
    shape = shape_of(section)
    common |= {"img_size": section.image, "patch_size": section.patch, "embed_dim": shape.width, "depth": shape.depth,
               "num_heads": shape.heads, "qkv_bias": section.qkv_bias, "init_values": section.layer_scale,
               "mlp_ratio": _ratio(shape.mlp, shape.width)}
    return {"Eva": _eva, "Beit": _beit, "VisionTransformerRelPos": _relpos}.get(kind, _vit)(section, common)


def class_of(section: Vit) -> str:
    """timm's class of a Vision Transformer."""
    if section.family == "deit":
        return "VisionTransformerDistilled"
    probe = section.pool == "attention" and (section.pool_heads is not None or section.pool_mlp is not None)
    if section.position == "relative":
        registers = section.registers == (section.pool == "mean")       # Beit's class token, where nothing pools it
        beit = registers and not (section.relative_mlp or section.post_norm or section.qk_norm)
        return "Beit" if beit else "VisionTransformerRelPos"
    return "Eva" if is_rotary(section) or probe else "VisionTransformer"


def _refusal(wrong: Wrong) -> str:
    return "\n".join(["no stock class of timm's expresses this model:", *(f"  {key}  {why}" for key, why in wrong),
                      "write it with --format safetensors instead"])


def _check(kind: str, section: Model, allowed: Mapping[str, tuple[Any, ...]], more: Wrong | None = None) -> None:
    """Raises RecipeError naming every key that a class does not hold, and every value that it has not."""
    held = _ANYWHERE | _HELD[kind] | set(allowed)
    wrong = [(f"model.{key}", f"{value} has no expression there") for key, field in type(section).model_fields.items()
             if key not in held and (value := getattr(section, key)) != field.default]
    wrong += [(f"model.{key}", f"{getattr(section, key)} has no expression there; {' or '.join(map(str, values))} has")
              for key, values in allowed.items() if getattr(section, key) not in values] + (more or [])
    if wrong:
        raise RecipeError(_refusal(wrong))


def _together(kind: str, section: Vit) -> Wrong:
    """What has no expression although each by itself has."""
    found: Wrong = []
    attentive = section.pool == "attention"
    if not section.final_norm and section.pool_norm:
        found.append(("model.final_norm", "false has no expression there with pool_norm"))
    if section.family == "deit" and not section.classes:
        found.append(("model.classes", "0 has no expression there: its class gives the mean of both tokens then"))
    if kind == "VisionTransformer" and section.gated and (attentive or section.norm_eps != 1e-6 or section.post_norm):
        found.append(("model.gated", "has no expression there with attention pooling, post_norm or another norm_eps than 1e-6"))
    if kind == "VisionTransformer" and section.post_norm and section.norm_eps != 1e-6:
        found.append(("model.norm_eps", f"{section.norm_eps:g} has no expression there with post_norm; 1e-06 has"))
    if kind == "Eva":
        before = section.registers > 0
        if before and section.pool != "token" and pools_prefix(section) != attentive:
            found.append(("model.pool_include_prefix", f"{section.pool_include_prefix} has no expression there with {section.pool}"))
        if section.post_norm and section.qk_norm:
            found.append(("model.qk_norm", "has no expression there with post_norm and rotary positions or attention pooling's own sizes"))
    if kind == "VisionTransformerRelPos" and section.registers > (section.pool == "mean"):
        found.append(("model.registers", f"{section.registers} has none there with position relative and pool {section.pool}; "
                      f"{'0 or 1' if section.pool == 'mean' else '0'} has"))
    return found


def _ratio(hidden: int, width: int) -> float:
    """That by which timm finds the hidden width again, which it rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _vit(section: Vit, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    arguments = common | {
        "qk_norm": section.qk_norm, "pre_norm": section.pre_norm, "final_norm": section.final_norm,
        "scale_attn_norm": section.scale_attn_norm, "scale_mlp_norm": section.scale_mlp_norm}
    if section.family == "deit":
        return "deit_base_distilled_patch16_224", arguments | {"act_layer": section.hidden_act}
    arguments |= {
        "global_pool": _POOLS[section.pool], "class_token": section.pool == "token", "reg_tokens": section.registers,
        "fc_norm": section.pool_norm, "no_embed_class": not embeds_class(section), "pool_include_prefix": pools_prefix(section),
        "pos_embed": "none" if section.position == "none" else "learn"}
    if section.gated:       # the classes of MLPs and norms are no arguments that a file can hold: these architectures bring them along
        shape = shape_of(section)
        return "vit_giant_patch14_dinov2", arguments | {"mlp_ratio": _ratio(2 * shape.mlp, shape.width)}
    known = "vit_base_patch16_clip_224" if section.norm_eps != 1e-6 else "vit_base_patch16_rpn_224" if section.post_norm else (
        "vit_base_patch16_224")
    return known, arguments | {"act_layer": section.hidden_act}


def _eva(section: Vit, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    shape = shape_of(section)
    arguments = common | {
        "global_pool": _POOLS[section.pool], "class_token": section.pool == "token", "num_reg_tokens": section.registers,
        "attn_type": "rope" if section.qkv_bias and section.key_bias else "eva", "qkv_fused": True, "qk_norm": section.qk_norm,
        "swiglu_mlp": section.gated, "swiglu_align_to": 0, "scale_mlp": section.scale_mlp_norm, "scale_attn_inner": section.scale_attn_norm,
        "use_abs_pos_emb": section.position == "learned", "no_embed_class": not embeds_class(section),
        "use_rot_pos_emb": is_rotary(section), "rope_type": {"axial": "cat", "mixed": "mixed"}.get(section.rope_type or "", "dinov3"),
        "rope_temperature": section.rope_temperature, "rope_grid_offset": section.rope_offset, "rope_grid_indexing": "ij",
        "rope_rotate_half": section.rope_type != "mixed", "ref_feat_shape": None if section.rope_grid is None else [section.rope_grid] * 2,
        "use_post_norm": section.post_norm,
        "use_pre_transformer_norm": section.pre_norm, "use_fc_norm": section.pool_norm,
        "use_post_transformer_norm": section.final_norm and not section.pool_norm}
    if section.pool == "attention":
        arguments |= {"attn_pool_num_heads": section.pool_heads or shape.heads,
                      "attn_pool_mlp_ratio": _ratio(section.pool_mlp or shape.mlp, shape.width)}
    return "eva02_tiny_patch14_224" if section.norm_eps == 1e-6 else "vit_base_patch16_dinov3", arguments


def _beit(section: Vit, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "beit_base_patch16_224", common | {
        "global_pool": _POOLS[section.pool], "use_fc_norm": section.pool_norm, "scale_mlp": section.scale_mlp_norm,
        "use_abs_pos_emb": False, "use_rel_pos_bias": True}


def _relpos(section: Vit, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "vit_relpos_base_patch16_rpn_224" if section.post_norm else "vit_relpos_base_patch16_224", common | {
        "global_pool": _POOLS[section.pool], "fc_norm": section.pool_norm, "qk_norm": section.qk_norm,
        "class_token": section.pool == "token" or section.registers > 0, "rel_pos_type": "mlp" if section.relative_mlp else "bias",
        "rel_pos_dim": section.relative_mlp}


def _swin(section: Swin, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    stages = swin.stages_of(section)
    windows = [[window] * 2 for window in section.windows] if section.windows else section.window
    arguments = common | {"img_size": section.image, "patch_size": section.patch, "window_size": windows, "embed_dim": stages[0].width,
                          "depths": [stage.depth for stage in stages], "num_heads": [stage.heads for stage in stages]}
    if section.version == 1:
        return "swin_tiny_patch4_window7_224", arguments
    return "swinv2_tiny_window8_256", arguments | {"act_layer": section.hidden_act, "pretrained_window_sizes": list(
        section.pretrained_windows or (0,) * len(stages))}


def _convnext(section: ConvNext, common: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    stages = convnext.stages_of(section)
    return "convnext_tiny" if section.version == 1 else "convnextv2_tiny", common | {
        "dims": [stage.width for stage in stages], "depths": [stage.depth for stage in stages], "use_grn": convnext.has_grn(section),
        "ls_init_value": convnext.layer_scale_of(section), "stem_type": section.stem, "kernel_sizes": section.kernel,
        "head_hidden_size": section.head_hidden, "act_layer": section.hidden_act, "norm_eps": section.norm_eps, "conv_mlp": False}


def to_timm(section: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights as timm's class has them: fixed positions become a table that could be learned, registers have places too."""
    if not isinstance(section, Vit):
        return dict(weights)
    kind = class_of(section)
    ours = _with_table(section, dict(weights))
    if kind in ("Beit", "VisionTransformerRelPos") and section.registers:       # their class token, which nothing pools
        ours["cls_token"] = ours.pop("reg_token")
    found: dict[str, Tensor] = {}
    if section.rope_type == "mixed":        # its frequencies are those of a head's numbers two by two, ours of those half a head apart
        width = shape_of(section).width // shape_of(section).heads
        ours = in_order(ours, shape_of(section).heads, [place for pair in range(width // 2) for place in (pair, pair + width // 2)])
        each = [ours.pop(f"blocks.{block}.attn.rope_freqs").unflatten(1, (2, -1)) for block in range(shape_of(section).depth)]
        found["rope.freqs"] = torch.stack(each).permute(2, 0, 1, 3).contiguous()
    for name, value in ours.items():
        found |= _theirs(kind, section, name, value)
    return found


def _theirs(kind: str, section: Vit, name: str, value: Tensor) -> dict[str, Tensor]:
    """One of our tensors under the names, and in the pieces, that timm's class has."""
    width = shape_of(section).width
    if name.endswith("attn.qkv.bias"):
        keyless = kind == "Beit" or (kind == "Eva" and not section.key_bias)
        if not keyless:
            return {name: whole_bias(value) if len(value) == 2 * width else value}
        before = name.removesuffix("qkv.bias")
        return {f"{before}q_bias": value[:width].contiguous(), f"{before}v_bias": value[-width:].contiguous()}
    if kind in ("Eva", "Beit") and name.endswith((".ls1.gamma", ".ls2.gamma")):
        return {name.replace(".ls", ".gamma_").removesuffix(".gamma"): value}
    if kind == "Eva" and section.gated and section.scale_mlp_norm and ".mlp.fc1." in name and name.startswith("blocks."):
        gate, rest = value.chunk(2)
        return {name.replace("fc1.", "fc1_g."): gate.contiguous(), name.replace("fc1.", "fc1_x."): rest.contiguous()}
    if kind == "VisionTransformerRelPos":
        for theirs, our in BIASES:
            name = name.replace(our, theirs)
    return {name: value}


def _with_table(section: Vit, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A row of positions for each token that timm's class has one for."""
    if section.position == "sincos":
        weights["pos_embed"] = sincos((grid(section),) * 2, shape_of(section).width)
    table = weights.get("pos_embed")
    if table is None:
        return weights
    if section.family == "deit" and (section.position == "sincos" or not section.class_position):
        weights["pos_embed"] = torch.cat([torch.zeros(1, 2, table.shape[2]), table], dim=1)
    elif section.registers and embeds_class(section):
        first = num_placed(section)
        weights["pos_embed"] = torch.cat([table[:, :first], torch.zeros(1, section.registers, table.shape[2]), table[:, first:]], dim=1)
    return weights
