"""Which of transformers' architectures expresses a model section, and their config.json of it."""

from typing import Any

from vitscale.errors import RecipeError
from vitscale.models.transformers_names import KINDS
from vitscale.recipe.schema import ConvNext, Model, Swin, Vit
from vitscale.shapes import convnext, swin
from vitscale.shapes.vit import shape_of

Wrong = list[tuple[str, str]]


def kind_of(section: Model) -> str:
    """transformers' model_type whose stock class gives the same logits.  Raises RecipeError naming each option that none has."""
    if isinstance(section, Swin):
        return "swin" if section.version == 1 else "swinv2"
    if isinstance(section, ConvNext):
        return "convnext" if section.version == 1 else "convnextv2"
    if not isinstance(section, Vit):
        raise RecipeError("no stock class of transformers expresses this model:\n"
                          f"  model.family  {section.family} has no expression there\n"
                          "write it with --format safetensors instead")
    kind, wrong = _vit_kind(section), _nowhere(section)
    if kind is None and not wrong:
        wrong = _not_together(section)
    if wrong:
        lines = [f"  {key}  {sentence}" for key, sentence in wrong]
        raise RecipeError("\n".join(["no stock class of transformers expresses this model:", *lines,
                                     "write it with --format timm or --format safetensors instead"]))
    assert kind is not None
    return kind


def _nowhere(section: Vit) -> Wrong:
    """Options that no classifier among transformers' has."""
    plain = {"attention": "full", "patch_embed": "patch", "parallel": False, "qk_norm": False, "head_hidden": None, "class_tokens": 1}
    return [(f"model.{key}", f"{getattr(section, key)} has no expression there") for key, value in plain.items()
            if getattr(section, key) != value] + (
        [("model.position", "rotary has no expression there with a classifier")] if section.position == "rotary" else []) + (
        [("model.pool", "attention has no expression there with a classifier")] if section.pool == "attention" else [])


def _vit_kind(section: Vit) -> str | None:
    extras = section.layer_scale is not None or section.gated or section.registers > 0
    if section.position == "relative":
        fits = section.pool == "mean" and section.pool_norm and section.registers == 1 and not section.gated
        return "beit" if fits else None
    if section.family == "deit":
        return None if extras else "deit"
    if section.pool == "token":
        if extras and _dino_ratio(section) is None:
            return None
        return ("dinov2_with_registers" if section.registers else "dinov2") if extras else "vit"
    if section.pool_norm and section.registers == 1 and not section.gated:
        return "beit"
    return None if extras or section.pool_norm else "siglip"


def _not_together(section: Vit) -> Wrong:
    """Why a combination has no expression although its options have."""
    if section.position == "relative":
        return [("model.position", "relative has one (BEiT) only with pool: mean, pool_norm: true, registers: 1 and without gated")]
    if section.family == "deit":
        return [("model.family", "deit has one only without layer_scale, gated and registers")]
    if section.pool == "token":
        options = ", ".join(str(dino_mlp(shape_of(section).width, ratio, section.gated)) for ratio in (2, 3, 4))
        return [("model.mlp", f"{shape_of(section).mlp} has one with layer_scale, gated or registers (DINOv2) only at widths of its own, "
                 f"such as {options}")]
    if section.pool_norm:
        return [("model.pool_norm", "after a mean has one (BEiT) only with registers: 1 and without gated")]
    odd = next(key for key in ("layer_scale", "gated", "registers") if getattr(section, key))
    return [(f"model.{odd}", "has no expression there together with pool: mean")]


def config_of(kind: str, section: Model, names: tuple[str, ...]) -> dict[str, Any]:
    """config.json of a section, as from_pretrained wants it; `names` of the classes."""
    known = KINDS[kind]
    config: dict[str, Any] = {"architectures": [known.architecture if section.classes else known.base], "model_type": kind,
                              "dtype": "float32", "torch_dtype": "float32"}
    if section.classes:
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    body = _swin(section) if isinstance(section, Swin) else _convnext(section) if isinstance(section, ConvNext) else _vit(kind, section)
    if kind == "siglip":
        if not section.classes:
            return config | body | {"model_type": "siglip_vision_model"}
        return config | {"vision_config": body | {"model_type": "siglip_vision_model"}}
    return config | body


def _vit(kind: str, section: Model) -> dict[str, Any]:
    assert isinstance(section, Vit)
    shape = shape_of(section)
    config: dict[str, Any] = {
        "hidden_size": shape.width, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads, "intermediate_size": shape.mlp,
        "hidden_act": "gelu", "hidden_dropout_prob": section.dropout, "layer_norm_eps": section.norm_eps, "image_size": section.image,
        "patch_size": section.patch, "num_channels": section.channels, "qkv_bias": section.qkv_bias,
    }
    if kind.startswith("dino"):
        config |= {"mlp_ratio": _dino_ratio(section), "use_swiglu_ffn": section.gated, "layerscale_value": section.layer_scale or 1.0,
                   "drop_path_rate": section.drop_path}
        config |= {"num_register_tokens": section.registers} if section.registers else {}
        del config["intermediate_size"]
    if kind == "siglip":
        config["vision_use_head"] = False
        del config["qkv_bias"], config["hidden_dropout_prob"]
    if kind == "beit":
        del config["qkv_bias"]
        relative = section.position == "relative"
        config |= {"use_relative_position_bias": relative, "use_absolute_position_embeddings": not relative, "use_mean_pooling": True,
                   "layer_scale_init_value": section.layer_scale or 0.0, "use_mask_token": False, "drop_path_rate": section.drop_path}
    return config


def dino_mlp(width: int, ratio: int, gated: bool) -> int:
    """The hidden width of DINOv2's MLP; of a gated one two thirds of what it is told, up to a multiple of 8."""
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if gated else width * ratio


def _dino_ratio(section: Vit) -> int | None:
    """The (whole) ratio at which theirs has our MLP's width."""
    shape = shape_of(section)
    return next((ratio for ratio in range(1, 17) if dino_mlp(shape.width, ratio, section.gated) == shape.mlp), None)


def _swin(section: Swin) -> dict[str, Any]:
    stages = swin.stages_of(section)
    return {
        "image_size": section.image, "patch_size": section.patch, "num_channels": section.channels, "embed_dim": stages[0].width,
        "depths": [stage.depth for stage in stages], "num_heads": [stage.heads for stage in stages], "window_size": section.window,
        "mlp_ratio": float(swin.MLP_RATIO), "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "drop_path_rate": section.drop_path, "use_absolute_embeddings": False,
    }


def _convnext(section: ConvNext) -> dict[str, Any]:
    stages, scale = convnext.stages_of(section), convnext.layer_scale_of(section)
    config = {"image_size": section.image, "patch_size": convnext.STEM, "num_channels": section.channels, "num_stages": len(stages),
              "hidden_sizes": [stage.width for stage in stages], "depths": [stage.depth for stage in stages], "hidden_act": "gelu",
              "layer_norm_eps": 1e-6, "drop_path_rate": section.drop_path}
    return config if scale is None else config | {"layer_scale_init_value": scale}
