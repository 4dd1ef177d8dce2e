"""transformers' config.json -> the model section that expresses it: every key of it is used, without effect, or refused by name.

The defaults are those of transformers' configuration classes, which files on the hub rely on; a test compares them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from vitscale.errors import CheckpointError, RecipeError
from vitscale.models.foreign_keys import ForeignKeys
from vitscale.models.transformers_config import dino_mlp
from vitscale.models.transformers_names import kind_of_file
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES, Model

Reader = Callable[[ForeignKeys], dict[str, Any]]

# of any model of transformers', of this version or an older one: what it writes down, and what generates text, which these do not
_GENERAL = """
    model_type transformers_version architectures dtype torch_dtype id2label label2id num_labels problem_type finetuning_task
    _name_or_path name_or_path _commit_hash _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    attn_implementation experts_implementation output_hidden_states output_attentions return_dict torchscript use_bfloat16 use_cache
    gradient_checkpointing chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size
    tie_word_embeddings tie_encoder_decoder tf_legacy_loss max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens bos_token_id
    pad_token_id eos_token_id sep_token_id decoder_start_token_id prefix task_specific_params tokenizer_class initializer_range
    initializer_factor vitscale_model""".split()    # noqa: SIM905  (a hundred quotes)
_AS_BACKBONE = ("out_features", "out_indices", "stage_names", "reshape_hidden_states", "apply_layernorm")    # of AutoBackbone alone


def section_of(config: Mapping[str, Any], where: str) -> Model:
    """The section.  Raises CheckpointError naming every key that ours cannot follow."""
    kind = kind_of_file(config)
    if kind not in READERS:
        raise CheckpointError(f"{where}: model_type {kind!r} is none that is known here; known are {', '.join(READERS)}")
    keys = ForeignKeys(config)
    classes = _classes(keys)
    try:
        values = READERS[kind](keys) | {"classes": classes}
        general(keys)
        keys.close(where)
        return check_section(FAMILIES[values["family"]], values, where, contradictions=model_contradictions)
    except (RecipeError, CheckpointError) as error:
        raise CheckpointError(str(error) if where in str(error) else f"{where}: {error}") from None


def _classes(keys: ForeignKeys) -> int:
    """Of the classifier; 0 where the class that wrote the file has none."""
    labels, number = keys.take("id2label", None), keys.take("num_labels", 2)
    if not classified(keys):
        return 0
    if labels is not None and (not isinstance(labels, Mapping) or labels.keys() != {str(one) for one in range(len(labels))}):
        keys.refuse("id2label", "does not name one class for each number from 0 on")
    elif labels is not None and keys.values.get("num_labels", len(labels)) != len(labels):
        keys.refuse("num_labels", f"{number!r} is not the number of classes that id2label names, {len(labels)}")
    return int(number) if labels is None else len(labels)


def general(keys: ForeignKeys) -> None:
    """What any configuration of transformers' may say besides."""
    keys.must("pruned_heads", {}, None)
    keys.idle(*_GENERAL)


def side(keys: ForeignKeys, key: str, default: int) -> Any:
    """A number of pixels, or a list with the same twice."""
    value = keys.take(key, default)
    if isinstance(value, (list, tuple)) and value and all(one == value[0] for one in value):
        return value[0]
    if isinstance(value, (list, tuple)):
        keys.refuse(key, f"{value!r} is not square")
        return default
    return value


def images(keys: ForeignKeys, patch: int = 16) -> dict[str, Any]:
    """What images a model takes, and in patches of what size."""
    keys.must("num_channels", 3, 1)
    return {"image": side(keys, "image_size", 224), "channels": keys.take("num_channels", 3), "patch": side(keys, "patch_size", patch)}


ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu",
               "swish": "silu", "relu": "relu"}


def activation(keys: ForeignKeys, default: str = "gelu") -> str:
    """Of the MLPs; the recipe's name."""
    if (value := keys.take("hidden_act", default)) not in ACTIVATIONS:
        keys.refuse("hidden_act", f"{value!r} is not expressed here; {', '.join(ACTIVATIONS)} are")
    return ACTIVATIONS.get(value, "gelu")


def gate(keys: ForeignKeys, key: str) -> dict[str, Any]:
    """Whether MLPs are gated, and their activation; a gate is silu."""
    gated, act = keys.take(key, False), activation(keys)
    return {"gated": gated, "hidden_act": "gelu" if gated else act}


def classified(keys: ForeignKeys) -> bool:
    """Whether the class that wrote the file has a classifier."""
    return any("ForImageClassification" in str(name) for name in keys.take("architectures", None) or ())


def transformer(keys: ForeignKeys, eps: float = 1e-12) -> dict[str, Any]:
    """What all their plain Vision Transformers have."""
    keys.idle("attention_probs_dropout_prob", "attention_dropout")       # in training alone
    return images(keys) | {
        "family": "vit", "width": keys.take("hidden_size", 768), "depth": keys.take("num_hidden_layers", 12),
        "heads": keys.take("num_attention_heads", 12), "norm_eps": keys.take("layer_norm_eps", eps)}


def _vit(keys: ForeignKeys) -> dict[str, Any]:
    keys.idle("encoder_stride", "pooler_output_size", "pooler_act")      # of other tasks than ours
    return transformer(keys) | {"mlp": keys.take("intermediate_size", 3072), "qkv_bias": keys.take("qkv_bias", True),
                                "hidden_act": activation(keys), "dropout": keys.take("hidden_dropout_prob", 0.0)}


def _ijepa(keys: ForeignKeys) -> dict[str, Any]:
    return _vit(keys) | {"pool": "mean"}


def _msn(keys: ForeignKeys) -> dict[str, Any]:
    return _vit(keys) | {"norm_eps": keys.take("layer_norm_eps", 1e-6)}


def _deit(keys: ForeignKeys) -> dict[str, Any]:
    return _vit(keys) | {"family": "deit"}


def _deit_by_label(keys: ForeignKeys) -> dict[str, Any]:
    """DeiTForImageClassification looks at the class token alone: the distillation token is a register to it."""
    return _vit(keys) | {"registers": 1}


def _mae(keys: ForeignKeys) -> dict[str, Any]:
    keys.idle("decoder_num_attention_heads", "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size", "mask_ratio",
              "norm_pix_loss")
    return _vit(keys)


def _dinov2(keys: ForeignKeys, patch: int = 14) -> dict[str, Any]:
    values = transformer(keys, eps=1e-6) | {"patch": side(keys, "patch_size", patch)} | gate(keys, "use_swiglu_ffn")
    keys.idle("use_mask_token", *_AS_BACKBONE)
    return values | {
        "layer_scale": keys.take("layerscale_value", 1.0), "qkv_bias": keys.take("qkv_bias", True),
        "mlp": dino_mlp(values["width"], keys.take("mlp_ratio", 4), values["gated"]), "dropout": keys.take("hidden_dropout_prob", 0.0),
        "drop_path": keys.take("drop_path_rate", 0.0), "pool": "token_mean" if classified(keys) else "token"}


def _dinov2_with_registers(keys: ForeignKeys) -> dict[str, Any]:
    return _dinov2(keys, patch=16) | {"registers": keys.take("num_register_tokens", 4), "position_interpolation": "bicubic_antialias"}


def _dinov3(keys: ForeignKeys) -> dict[str, Any]:
    bias, keyed = keys.take("query_bias", True), keys.take("key_bias", False)
    keys.must("value_bias", True, bias, why="without query_bias is not expressed here")
    if bias != keys.take("value_bias", True) or (keyed and not bias):
        keys.refuse("query_bias", "is not expressed here unlike value_bias, or less than key_bias")
    keys.must("proj_bias", True)
    keys.must("mlp_bias", True)
    keys.idle(*_AS_BACKBONE)
    if keys.take("use_gated_mlp", False) and keys.take("hidden_act", "gelu") != "silu":
        keys.refuse("hidden_act", f"{keys.take('hidden_act', 'gelu')!r} is not expressed here with use_gated_mlp; 'silu' is")
    return transformer(keys, eps=1e-5) | gate(keys, "use_gated_mlp") | {
        "width": keys.take("hidden_size", 384), "heads": keys.take("num_attention_heads", 6), "mlp": keys.take("intermediate_size", 1536),
        "position": "rotary", "rope_temperature": float(keys.take("rope_theta", 100.0)), "qkv_bias": bias, "key_bias": keyed or not bias,
        "layer_scale": keys.take("layerscale_value", 1.0), "registers": keys.take("num_register_tokens", 0),
        "drop_path": keys.take("drop_path_rate", 0.0),
        # in training alone
        "rope_shift": keys.take("pos_embed_shift", None) or None, "rope_jitter": _stretch(keys.take("pos_embed_jitter", None)),
        "rope_rescale": _stretch(keys.take("pos_embed_rescale", 2.0))}


def _stretch(factor: float | None) -> float | None:
    """Of 1 / it to it; None: of 1 alone."""
    return None if factor in (None, 1.0) else float(max(factor, 1 / factor))


def _beit(keys: ForeignKeys) -> dict[str, Any]:
    keys.idle("vocab_size", "use_mask_token", "pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels",
              "auxiliary_num_convs", "auxiliary_concat_input", "semantic_loss_ignore_index", "add_fpn", "segmentation_indices",
              "qkv_bias", *_AS_BACKBONE)        # the class has always biases; exports of older versions of ours name them
    relative, absolute = keys.take("use_relative_position_bias", False), keys.take("use_absolute_position_embeddings", False)
    shared, mean = keys.take("use_shared_relative_position_bias", False), keys.take("use_mean_pooling", True)
    if absolute and (relative or shared):
        keys.refuse("use_absolute_position_embeddings", "is not expressed here together with a bias of relative positions")
    if relative and shared:
        keys.refuse("use_shared_relative_position_bias", "is not expressed here together with biases of each block's own")
    return transformer(keys) | {
        "pool": "mean" if mean else "token", "pool_norm": mean, "registers": 1 if mean else 0, "qkv_bias": True, "key_bias": False,
        "mlp": keys.take("intermediate_size", 3072), "hidden_act": activation(keys), "dropout": keys.take("hidden_dropout_prob", 0.0),
        "position": "relative" if relative or shared else "learned" if absolute else "none",
        "position_interpolation": "bilinear" if relative or shared else "bicubic",
        "layer_scale": keys.take("layer_scale_init_value", 0.1) or None, "drop_path": keys.take("drop_path_rate", 0.1)}


def _data2vec(keys: ForeignKeys) -> dict[str, Any]:
    values = _beit(keys)
    bare = values["pool"] == "mean" and not classified(keys)        # its class without a classifier has no pooling, hence no norm of it
    return values | ({"pool_norm": False, "final_norm": False} if bare else {})


def _siglip_vision(keys: ForeignKeys, has_classes: bool | None = None) -> dict[str, Any]:
    keys.idle("hidden_dropout_prob", "qkv_bias")        # in exports of older versions of ours
    probe = keys.take("vision_use_head", True) and not (classified(keys) if has_classes is None else has_classes)
    return transformer(keys, eps=1e-6) | {"pool": "attention" if probe else "mean", "hidden_act": activation(keys, "gelu_pytorch_tanh"),
                                          "mlp": keys.take("intermediate_size", 3072)}


def _siglip2_vision(keys: ForeignKeys, has_classes: bool | None = None) -> dict[str, Any]:
    values = _siglip_vision(keys, has_classes)
    patches = keys.take("num_patches", 256)
    if math.isqrt(patches) ** 2 != patches:
        keys.refuse("num_patches", f"{patches} is no square")
    return values | {"image": math.isqrt(patches) * values["patch"], "position_interpolation": "bilinear_antialias"}


def _clip_vision(keys: ForeignKeys, has_classes: bool | None = None) -> dict[str, Any]:
    keys.idle("projection_dim", "initializer_factor", "dropout", "hidden_dropout_prob")
    classes = classified(keys) if has_classes is None else has_classes
    values = transformer(keys, eps=1e-5) | {
        "patch": side(keys, "patch_size", 32), "pre_norm": True, "mlp": keys.take("intermediate_size", 3072),
        "hidden_act": activation(keys, "quick_gelu")}
    return values | ({"pool": "mean", "registers": 1, "final_norm": False} if classes else {})


def _inside(reader: Callable[[ForeignKeys, bool | None], dict[str, Any]]) -> Reader:
    """Of the vision_config of a model of images and texts, of which the images' part is read."""
    def read(keys: ForeignKeys) -> dict[str, Any]:
        keys.idle("text_config", "initializer_factor", "projection_dim", "logit_scale_init_value", "text_config_dict", "vision_config_dict")
        inner = keys.inner("vision_config")
        general(inner)
        return reader(inner, classified(keys))
    return read


def _swin(keys: ForeignKeys) -> dict[str, Any]:
    keys.must("mlp_ratio", 4.0)
    keys.must("qkv_bias", True)
    keys.must("layer_norm_eps", 1e-5)
    keys.must("hidden_dropout_prob", 0.0, why="(dropout in training) is not expressed here")
    keys.idle("attention_probs_dropout_prob", "encoder_stride", "num_layers", "hidden_size", "path_norm", *_AS_BACKBONE)
    return images(keys, patch=4) | {
        "family": "swin", "version": 1, "width": keys.take("embed_dim", 96), "depths": keys.take("depths", [2, 2, 6, 2]),
        "heads": keys.take("num_heads", [3, 6, 12, 24]), "window": keys.take("window_size", 7), "hidden_act": activation(keys),
        "position": "learned" if keys.take("use_absolute_embeddings", False) else "none",
        "drop_path": keys.take("drop_path_rate", 0.1)}


def _swinv2(keys: ForeignKeys) -> dict[str, Any]:
    values = _swin(keys)
    keys.must("use_absolute_embeddings", False, why="is not expressed here, nor can transformers' own class run")
    given = keys.take("pretrained_window_sizes", [0, 0, 0, 0])
    return values | {"version": 2, "position": "none", "pretrained_windows": given if any(given) else None}


def _convnext(keys: ForeignKeys) -> dict[str, Any]:
    eps = keys.take("layer_norm_eps", 1e-12)        # of the last norm alone
    keys.idle("num_stages", *_AS_BACKBONE)
    values = images(keys, patch=4) | {"hidden_act": activation(keys)}
    del values["patch"]
    keys.must("patch_size", 4, [4, 4])
    return values | {
        "family": "convnext", "version": 1, "widths": keys.take("hidden_sizes", [96, 192, 384, 768]),
        "depths": keys.take("depths", [3, 3, 9, 3]), "head_norm_eps": None if eps == 1e-6 else eps,
        "layer_scale": keys.take("layer_scale_init_value", 1e-6), "drop_path": keys.take("drop_path_rate", 0.0)}


def _convnextv2(keys: ForeignKeys) -> dict[str, Any]:
    values = _convnext(keys) | {"version": 2}
    del values["layer_scale"]
    return values


def _dinov3_convnext(keys: ForeignKeys) -> dict[str, Any]:
    keys.idle(*_AS_BACKBONE)
    keys.must("num_channels", 3, 1)
    return {"family": "convnext", "version": 1, "image": side(keys, "image_size", 224), "channels": keys.take("num_channels", 3),
            "widths": keys.take("hidden_sizes", [96, 192, 384, 768]), "depths": keys.take("depths", [3, 3, 9, 3]),
            "hidden_act": activation(keys), "norm_eps": keys.take("layer_norm_eps", 1e-6),
            "layer_scale": keys.take("layer_scale_init_value", 1e-6), "drop_path": keys.take("drop_path_rate", 0.0)}


READERS: dict[str, Reader] = {          # by model_type
    "vit": _vit, "vit_mae": _mae, "deit": _deit, "deit_by_label": _deit_by_label, "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2_with_registers, "beit": _beit, "data2vec-vision": _data2vec,
    "ijepa": _ijepa, "vit_msn": _msn, "dinov3_vit": _dinov3, "dinov3_convnext": _dinov3_convnext,
    "siglip": _inside(_siglip_vision), "siglip_vision_model": _siglip_vision, "siglip2": _inside(_siglip2_vision),
    "siglip2_vision_model": _siglip2_vision, "clip": _inside(_clip_vision), "clip_vision_model": _clip_vision, "swin": _swin,
    "swinv2": _swinv2, "convnext": _convnext, "convnextv2": _convnextv2,
}
