"""To transformers, for export: which of its architectures expresses a model section, and its config.json."""

from collections.abc import Mapping
from typing import Any

from vitscale.errors import RecipeError
from vitscale.models.transformers_names import KINDS
from vitscale.recipe.schema import ConvNext, Model, Swin, Vit
from vitscale.shapes import convnext, swin
from vitscale.shapes.vit import shape_of

Wrong = list[tuple[str, str]]
_EVERY: dict[str, tuple[Any, ...]] = {
    "attention": ("full",), "patch_embed": ("patch",), "parallel": (False,), "qk_norm": (False,), "head_hidden": (None,),
    "class_tokens": (1,), "pool_heads": (None,), "pool_mlp": (None,), "scale_attn_norm": (False,), "scale_mlp_norm": (False,),
    "rope_type": (None,), "rope_grid": (None,), "rope_offset": (0.0,), "mup_base_width": (None,), "mup_base_head_width": (None,)}
# keys that every class has an argument or tensors for, or that matter in training alone, or at another size
_ANYWHERE = {"family", "size", "image", "channels", "classes", "width", "depth", "heads", "mlp", "patch", "dropout", "head_dropout",
             "drop_path", "drop_path_schedule", "drop_path_group", "position_interpolation", "norm_eps", "hidden_act", "qkv_bias",
             "key_bias", "class_position", "rope_temperature", "rope_shift", "rope_jitter", "rope_rescale", "version", "widths", "depths"}
_TABLE = ("learned", "sincos", "none")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "family": ("vit",), "position": _TABLE, "gated": (False,), "layer_scale": (None,), "registers": (0,), "pre_norm": (False,),
    "final_norm": (True,), "pool_norm": (False,), "pool": ("token",), "pool_include_prefix": (None,)}
_DINO = {"gated": (False, True), "layer_scale": (), "pool": ("token", "token_mean")}
_CLIP = {"pre_norm": (True,)}
# model_type -> (whether its class has a classifier; None: one has and one has not; values of keys that it expresses, () for any)
_FIRST = _PLAIN | {"pool_norm": (False, True)}         # of one token alone, a norm before the pooling is one after it
_VITS: dict[str, tuple[bool | None, dict[str, tuple[Any, ...]]]] = {
    "vit": (None, _FIRST), "deit": (None, _FIRST | {"family": ("deit",)}), "dinov2": (None, _FIRST | _DINO),
    "dinov2_with_registers": (None, _FIRST | _DINO | {"registers": ()}),
    "beit": (None, _PLAIN | {"position": (*_TABLE, "relative"), "layer_scale": ()}),
    "siglip": (True, _PLAIN | {"pool": ("mean",)}),
    "siglip_vision_model": (False, _PLAIN | {"pool": ("mean", "attention"), "pool_include_prefix": (None, True)}),
    "clip": (True, _PLAIN | _CLIP | {"pool": ("mean",), "final_norm": (False,), "registers": (1,)}),
    "clip_vision_model": (False, _PLAIN | _CLIP),
    "dinov3_vit": (False, _FIRST | {"position": ("rotary",), "rope_type": (None, "dinov3"), "gated": (False, True), "layer_scale": (),
                                    "registers": ()}),
}
# the same of the other families; () for any
_SWIN: dict[str, tuple[Any, ...]] = {"norm_eps": (1e-5,), "window": ()}
_CONVNEXT: dict[str, tuple[Any, ...]] = {"norm_eps": (1e-6,), "head_norm_eps": ()}
_STAGED: dict[str, dict[str, tuple[Any, ...]]] = {
    "swin": _SWIN | {"position": ("none", "learned")}, "swinv2": _SWIN | {"pretrained_windows": ()},
    "convnext": _CONVNEXT | {"layer_scale": (), "use_grn": (None, False)}, "convnextv2": _CONVNEXT | {"use_grn": (None, True)}}
_BEIT_MEAN = {"pool": ("mean",), "pool_norm": (True,), "registers": (1,)}


def kind_of(section: Model) -> str:
    """transformers' model_type whose stock class gives the same logits.  Raises RecipeError naming each option that none has."""
    if isinstance(section, Vit):
        wrong = {kind: _unlike(kind, section) for kind in _VITS}
    else:
        wrong = _others(section)
    # of several alike the one with the same pooling and positions, or whose MLPs alone are of another width
    kind = min(wrong, key=lambda one: (len(wrong[one]), not dict(wrong[one]).keys().isdisjoint(("model.pool", "model.position")),
                                       "model.mlp" not in dict(wrong[one])))
    if wrong[kind]:
        lines = [f"  {key}  {sentence}" for key, sentence in wrong[kind]]
        raise RecipeError("\n".join([f"no stock class of transformers expresses this model; the nearest is {kind}:", *lines,
                                     "write it with --format timm or --format safetensors instead"]))
    return kind


def _unlike(kind: str, section: Vit) -> Wrong:
    """What of a section a class of theirs does not express."""
    classified, allowed = _VITS[kind]
    if kind == "beit" and section.pool == "mean":
        allowed = allowed | _BEIT_MEAN
    found = _away(section, _EVERY | allowed)
    if classified is not None and bool(section.classes) != classified:
        found.append(("model.classes", "0 has no expression there" if classified else
                      f"{section.classes} has none there: the class has no classifier; classes 0 has"))
    if kind.startswith("dinov2") and _dino_ratio(section) is None:
        options = ", ".join(str(dino_mlp(shape_of(section).width, ratio, section.gated)) for ratio in (2, 3, 4))
        found.append(("model.mlp", f"{shape_of(section).mlp} has one with layer_scale, gated or registers (DINOv2) only at widths of its "
                      f"own, such as {options}"))
    if section.pool == "token_mean" and (section.pool_norm or not section.classes):
        found.append(("model.pool", "token_mean has an expression there (DINOv2) only with a classifier and without pool_norm"))
    return found


def _away(section: Model, allowed: Mapping[str, tuple[Any, ...]]) -> Wrong:
    """Every key of another value than a class expresses: of one that it does not know, than that key's default."""
    found = [(f"model.{key}", f"{getattr(section, key)} has no expression there; {' or '.join(map(str, values))} has")
             for key, values in allowed.items() if values and getattr(section, key) not in values]
    return found + [(f"model.{key}", f"{value} has no expression there") for key, field in type(section).model_fields.items()
                    if key not in _ANYWHERE | allowed.keys() and (value := getattr(section, key)) != field.default]


def _others(section: Model) -> dict[str, Wrong]:
    """By model_type, of sections of other families, what has no expression there."""
    if not isinstance(section, (Swin, ConvNext)):
        return {"vit": [("model.family", f"{section.family} has no expression there")]}
    kind = section.family if section.version == 1 else f"{section.family}v2"
    wrong = _away(section, _STAGED[kind])
    if isinstance(section, Swin) and section.version == 1 and section.window > (last := swin.stages_of(section)[-1].grid):
        wrong.append(("model.window", f"{section.window} is more than the {last} tokens on a side of the last stage, which its class "
                      "cannot run"))
    return {kind: wrong}


def config_of(kind: str, section: Model, names: tuple[str, ...]) -> dict[str, Any]:
    """config.json of a section, as from_pretrained wants it; `names` of the classes."""
    known = KINDS[kind]
    config: dict[str, Any] = {"architectures": [known.architecture if section.classes else known.base], "model_type": kind,
                              "dtype": "float32", "torch_dtype": "float32"}
    if section.classes:
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    body = _swin(section) if isinstance(section, Swin) else _convnext(section) if isinstance(section, ConvNext) else _vit(kind, section)
    if kind in ("siglip", "clip"):
        return config | {"vision_config": body | {"model_type": f"{kind}_vision_model"}}
    return config | body


def _vit(kind: str, section: Model) -> dict[str, Any]:
    assert isinstance(section, Vit)
    shape = shape_of(section)
    config: dict[str, Any] = {
        "hidden_size": shape.width, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads, "intermediate_size": shape.mlp,
        "hidden_act": their_activation(section.hidden_act), "hidden_dropout_prob": section.dropout,
        "layer_norm_eps": section.norm_eps, "image_size": section.image, "patch_size": section.patch, "num_channels": section.channels,
        "qkv_bias": section.qkv_bias,
    }
    if kind.startswith("dinov2"):
        config |= {"mlp_ratio": _dino_ratio(section), "use_swiglu_ffn": section.gated, "layerscale_value": section.layer_scale or 1.0,
                   "drop_path_rate": section.drop_path}
        config |= {"num_register_tokens": section.registers} if section.registers else {}
        del config["intermediate_size"]
    if kind == "dinov3_vit":
        config |= {"query_bias": section.qkv_bias, "value_bias": section.qkv_bias, "key_bias": section.qkv_bias and section.key_bias,
                   "layerscale_value": section.layer_scale or 1.0, "use_gated_mlp": section.gated, "drop_path_rate": section.drop_path,
                   "num_register_tokens": section.registers, "rope_theta": section.rope_temperature, "pos_embed_shift": section.rope_shift,
                   "pos_embed_jitter": section.rope_jitter, "pos_embed_rescale": section.rope_rescale}
        config |= {"hidden_act": "silu"} if section.gated else {}
    if "siglip" in kind or "clip" in kind or kind == "dinov3_vit":
        del config["qkv_bias"], config["hidden_dropout_prob"]
    if "siglip" in kind:
        config["vision_use_head"] = section.pool == "attention"
    if kind == "beit":
        del config["qkv_bias"]
        relative = section.position == "relative"
        config |= {"use_relative_position_bias": relative, "use_absolute_position_embeddings": not relative,
                   "use_mean_pooling": section.pool == "mean", "layer_scale_init_value": section.layer_scale or 0.0,
                   "use_mask_token": False, "drop_path_rate": section.drop_path}
    return config


def their_activation(name: str) -> str:
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name


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
        "mlp_ratio": float(swin.MLP_RATIO), "qkv_bias": True,
        "hidden_act": their_activation(section.hidden_act), "layer_norm_eps": 1e-5,
        "drop_path_rate": section.drop_path, "use_absolute_embeddings": section.position == "learned",
        **({"pretrained_window_sizes": list(section.pretrained_windows)} if section.pretrained_windows else {}),
    }


def _convnext(section: ConvNext) -> dict[str, Any]:
    stages, scale = convnext.stages_of(section), convnext.layer_scale_of(section)
    config = {"image_size": section.image, "patch_size": convnext.STEM, "num_channels": section.channels, "num_stages": len(stages),
              "hidden_sizes": [stage.width for stage in stages], "depths": [stage.depth for stage in stages],
              "hidden_act": their_activation(section.hidden_act),
              "layer_norm_eps": section.head_norm_eps or section.norm_eps, "drop_path_rate": section.drop_path}
    return config if scale is None else config | {"layer_scale_init_value": scale}
