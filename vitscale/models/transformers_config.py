"""Which of transformers' architectures expresses a model section, or a section one of theirs, and their config.json of it."""

from collections.abc import Mapping
from typing import Any

from vitscale.errors import CheckpointError, RecipeError
from vitscale.models.transformers_names import KINDS
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, ConvNext, Model, Swin, Vit
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
    if kind == "beit":
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


def section_of(config: Mapping[str, Any], where: str) -> Model:
    """Their config.json -> the model section that expresses it.  Raises CheckpointError for what ours cannot express."""
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise CheckpointError(f"{where}: model_type {kind!r} is none that is known here; known are {', '.join(KINDS)}")
    body = dict(config.get("vision_config", config)) if kind == "siglip" else dict(config)
    if body.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"{where}: hidden_act {body['hidden_act']!r} is not expressed here: every model here has the exact gelu")
    classified = any("ForImageClassification" in name for name in config.get("architectures") or ())
    classes = len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
    try:
        values = _values(kind, body) | {"classes": classes if classified else 0}
        return check_section(FAMILIES[values["family"]], values, where)
    except KeyError as error:
        raise CheckpointError(f"{where}: lacks {error}, which says what model it is of") from None
    except RecipeError as error:
        raise CheckpointError(str(error)) from None


def _values(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    common = {"image": body.get("image_size", 224), "channels": body.get("num_channels", 3)}
    if kind.startswith("swin"):
        return common | {"family": "swin", "version": 1 if kind == "swin" else 2, "width": body["embed_dim"], "depths": body["depths"],
                         "heads": body["num_heads"], "window": body["window_size"], "patch": body.get("patch_size", 4)}
    if kind.startswith("convnext"):
        scale = {"layer_scale": body.get("layer_scale_init_value", 1e-6)} if kind == "convnext" else {}
        return common | scale | {"family": "convnext", "version": 1 if kind == "convnext" else 2, "widths": body["hidden_sizes"],
                                 "depths": body["depths"]}
    width = body["hidden_size"]
    values = common | {
        "family": "deit" if kind == "deit" else "vit", "width": width, "depth": body["num_hidden_layers"],
        "heads": body["num_attention_heads"], "mlp": body.get("intermediate_size", 4 * width), "patch": body.get("patch_size", 16),
        "qkv_bias": body.get("qkv_bias", True), "norm_eps": body.get("layer_norm_eps", 1e-6 if kind.startswith("dino") else 1e-12),
        "dropout": body.get("hidden_dropout_prob", 0.0),
    }
    if kind.startswith("dino"):
        gated = body.get("use_swiglu_ffn", False)
        values |= {"layer_scale": body.get("layerscale_value", 1.0), "gated": gated, "qkv_bias": body.get("qkv_bias", True),
                   "mlp": dino_mlp(width, body.get("mlp_ratio", 4), gated),
                   "registers": body.get("num_register_tokens", 4) if kind.endswith("registers") else 0}
    if kind == "siglip":
        values |= {"pool": "mean", "qkv_bias": True}
    if kind == "beit":
        values |= {"pool": "mean", "pool_norm": True, "registers": 1, "qkv_bias": True,
                   "position": "relative" if body.get("use_relative_position_bias") else "learned",
                   "layer_scale": body.get("layer_scale_init_value", 0.1) or None}
        both = body.get("use_relative_position_bias") and body.get("use_absolute_position_embeddings")
        if both or body.get("use_shared_relative_position_bias") or not body.get("use_mean_pooling", True):
            raise KeyError("use_mean_pooling with either a bias of each block's own or a table of positions")
    return values
