"""Models of timm and transformers, small and with random weights: every architecture, and every option that its class has."""

import contextlib
import inspect
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EQUAL = 1e-5        # of the largest difference over the standard deviation of the answers
PEERS = Path(sys.prefix) / "peers"


@dataclass(frozen=True)
class Case:
    """A model of another library's, and what it is called in a table."""

    library: str
    name: str                       # architecture, or class
    options: dict[str, Any] = field(default_factory=dict)
    shaken: bool = True             # else as its library begins it

    def __str__(self) -> str:
        return f"{self.library} {self.name} {json.dumps(self.options)}"


def import_timm() -> Any:
    """timm, with the torchvision that it asks for: whose wheels for GPUs have operators that do not load beside torch for CPUs alone, and
    which timm's models do not call; their names are all that has to be there."""
    sys.path.append(str(PEERS))
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):     # where they load they are there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    return timm, library        # operators live as long as their library


# ---- timm

_MODULES = ("vision_transformer", "deit", "swin_transformer", "swin_transformer_v2", "convnext", "beit", "eva", "vision_transformer_relpos",
            "naflexvit", "vision_transformer_sam", "vision_transformer_hybrid", "swin_transformer_v2_cr")
_VIT_OPTIONS: tuple[dict[str, Any], ...] = (
    {"img_size": 0}, {"in_chans": 1}, {"num_classes": 0}, {"num_classes": 7}, {"global_pool": "avg"}, {"global_pool": "map"},
    {"global_pool": "token"}, {"global_pool": "avg", "class_token": False}, {"global_pool": "avg", "fc_norm": False}, {"fc_norm": True},
    {"global_pool": "map", "class_token": False}, {"global_pool": "map", "fc_norm": True},
    {"global_pool": "max"}, {"global_pool": "avgmax"}, {"global_pool": "prr"},
    {"reg_tokens": 2}, {"reg_tokens": 3, "no_embed_class": True}, {"no_embed_class": True}, {"qk_norm": True}, {"init_values": 0.1},
    {"qkv_bias": False}, {"act_layer": "quick_gelu"}, {"act_layer": "gelu_tanh"}, {"act_layer": "relu"}, {"act_layer": "silu"},
    {"norm_layer": "rmsnorm"}, {"pre_norm": True}, {"final_norm": False}, {"mlp_ratio": 3}, {"pos_embed": "none"}, {"proj_bias": False},
    {"scale_attn_norm": True}, {"scale_mlp_norm": True}, {"dynamic_img_size": True}, {"drop_path_rate": 0.3},
    {"pool_include_prefix": True, "global_pool": "avg"}, {"reg_tokens": 2, "global_pool": "avg", "class_token": False},
    {"reg_tokens": 2, "global_pool": "map", "class_token": False}, {"reg_tokens": 2, "global_pool": "map", "pool_include_prefix": True},
    {"embed_dim": 60, "depth": 3, "num_heads": 5}, {"embed_dim": 36, "depth": 1, "num_heads": 4, "mlp_ratio": 2.7}, {"in_chans": 4},
)
_SWIN_OPTIONS: tuple[dict[str, Any], ...] = (
    {"img_size": 0}, {"in_chans": 1}, {"num_classes": 0}, {"window_size": 4, "img_size": 128}, {"mlp_ratio": 2.0}, {"qkv_bias": False},
    {"global_pool": "max"}, {"patch_size": 2, "img_size": 112}, {"norm_layer": "rmsnorm"}, {"img_size": (64, 128)},
    {"always_partition": True, "img_size": 64}, {"strict_img_size": False}, {"head_dim": 8}, {"act_layer": "relu"},
    {"pretrained_window_sizes": (8, 8, 8, 4)}, {"embed_dim": 24, "depths": (1, 2, 3), "num_heads": (3, 4, 6)}, {"window_size": 28},
)
_CONVNEXT_OPTIONS: tuple[dict[str, Any], ...] = (
    {"in_chans": 1}, {"num_classes": 0}, {"use_grn": True}, {"use_grn": True, "ls_init_value": None}, {"ls_init_value": None},
    {"conv_mlp": True}, {"kernel_sizes": 5}, {"kernel_sizes": (3, 5, 7, 9)}, {"stem_type": "overlap"}, {"stem_type": "overlap_tiered"},
    {"patch_size": 2}, {"norm_eps": 1e-3}, {"head_hidden_size": 24}, {"output_stride": 16}, {"act_layer": "gelu_tanh"},
    {"global_pool": "max"}, {"conv_bias": False}, {"head_norm_first": True}, {"norm_layer": "rmsnorm2d"}, {"stem_type": "overlap_act"},
    {"dims": (12, 20, 28, 44), "depths": (2, 1, 3, 1)}, {"dims": (8, 16, 24), "depths": (1, 2, 1)},
)
_EVA_OPTIONS: tuple[dict[str, Any], ...] = (
    {"img_size": 0}, {"in_chans": 1}, {"num_classes": 0}, {"global_pool": "token"}, {"global_pool": "avg"}, {"global_pool": "map"},
    {"qk_norm": True}, {"swiglu_mlp": True}, {"scale_mlp": True}, {"use_abs_pos_emb": True}, {"use_rot_pos_emb": True},
    {"init_values": 0.1}, {"num_reg_tokens": 2}, {"no_embed_class": True}, {"rope_temperature": 50.0}, {"rope_rotate_half": True},
    {"qkv_bias": False}, {"use_fc_norm": False}, {"class_token": False, "global_pool": "avg"}, {"use_post_norm": True},
    {"embed_dim": 80, "depth": 3, "num_heads": 5},
)
_OPTIONS = {"VisionTransformer": ("vit_tiny_patch16_224", _VIT_OPTIONS), "VisionTransformerDistilled": ("deit_tiny_distilled_patch16_224", (
    {"img_size": 0}, {"num_classes": 0}, {"in_chans": 1}, {"no_embed_class": True}, {"init_values": 0.2}, {"reg_tokens": 1},
    {"qk_norm": True}, {"fc_norm": True}, {"final_norm": False}, {"pos_embed": "none"})),
    "SwinTransformer": ("swin_tiny_patch4_window7_224", _SWIN_OPTIONS), "SwinTransformerV2": ("swinv2_tiny_window8_256", _SWIN_OPTIONS),
    "ConvNeXt": ("convnext_tiny", _CONVNEXT_OPTIONS), "ConvNeXt2": ("convnextv2_tiny", _CONVNEXT_OPTIONS),
    "Eva": ("eva02_tiny_patch14_224", _EVA_OPTIONS), "Eva3": ("vit_small_patch16_dinov3", _EVA_OPTIONS),
    "Beit": ("beit_base_patch16_224", ({"img_size": 0}, {"use_abs_pos_emb": True}, {"use_rel_pos_bias": False}, {"global_pool": "token"},
             {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}, {"init_values": None}, {"qkv_bias": False}, {"num_classes": 0})),
    "VisionTransformerRelPos": ("vit_relpos_small_patch16_224", ({"rel_pos_type": "bias"}, {"class_token": True, "global_pool": "token"},
                                {"num_classes": 0}, {"qk_norm": True}, {"rel_pos_dim": 16}, {"rel_pos_type": "mlp_swin"},
                                {"shared_rel_pos": True, "rel_pos_type": "bias", "class_token": True}, {"img_size": 0},
                                {"rel_pos_type": "bias", "class_token": True, "img_size": 0}, {"init_values": None}, {"qkv_bias": True})),
    "ResPost": ("vit_base_patch16_rpn_224", ({"num_classes": 7}, {"qk_norm": True}, {"scale_attn_norm": True}, {"fc_norm": True})),
    "ResPostRelPos": ("vit_relpos_small_patch16_rpn_224", ({"num_classes": 7}, {"shared_rel_pos": True}, {"rel_pos_type": "bias"})),
    "Mixed": ("vit_small_patch16_rope_mixed_224", ({"rope_rotate_half": True}, {"rope_grid_indexing": "ij"}, {"img_size": 0},
              {"qk_norm": True}, {"num_reg_tokens": 2}, {"rope_temperature": 50.0}, {"rope_grid_offset": 1.0}, {"use_abs_pos_emb": True},
              {"global_pool": "map"}, {"attn_type": "eva"}, {"qkv_fused": False}, {"embed_dim": 80, "depth": 3, "num_heads": 5}))}


def together(cases: Sequence[Case], seed: int, count: int = 200) -> list[Case]:
    """Cases with the options of two or three others of their class, which may stand in each other's way."""
    from vitscale.models.timm_section import architectures

    draw, by_class = random.Random(seed), dict[str, list[Case]]()
    for case in cases:
        kind = str(case.options.get("model_type") or architectures().get(case.name, ("",))[0])
        by_class.setdefault(kind, []).append(case)
    groups = [(mine, varied) for mine in by_class.values()
              if len(varied := [one for one in mine if one.options.keys() - {"model_type"}]) > 2]
    found = []
    for _ in range(count):
        mine, varied = draw.choice(groups)
        options = {key: value for one in draw.sample(varied, draw.choice((2, 3))) for key, value in one.options.items()}
        found.append(Case(mine[0].library, draw.choice(mine).name, options))
    return found


def timm_cases(timm: Any) -> list[Case]:
    cases = [Case("timm", name, {}, len(name) % 3 > 0) for module in _MODULES for name in timm.list_models(module=module)
             if module != "naflexvit" or name == "naflexvit_base_patch16_gap"]        # whose class none of ours is, however large
    cases += [Case("timm", name, options) for name, variants in _OPTIONS.values() for options in variants]
    return cases + list(_by_signature(timm))


def _by_signature(timm: Any) -> Iterator[Case]:
    """Each argument that a class has, and that is not changed above: its other truth, or twice as much."""
    from vitscale.models.timm_section import architectures

    done = {(architectures()[name][0], key) for name, variants in _OPTIONS.values() for options in variants for key in options}
    for name, _ in _OPTIONS.values():
        kind = architectures()[name][0]
        for key, parameter in inspect.signature(getattr(timm.models, kind).__init__).parameters.items():
            if isinstance(parameter.default, (bool, int, float)) and (kind, key) not in done:
                done.add((kind, key))
                yield from (Case("timm", name, {key: value}) for value in _changed(key, parameter.default))


def timm_model(timm: Any, case: Case) -> tuple[nn.Module, Tensor]:
    """(the model, small, with images for it)."""
    from timm.models import _registry

    module = _registry._model_to_module[case.name]
    options = dict(case.options)
    patch = next((int(part[5:]) for part in case.name.split("_") if part.startswith("patch") and part[5:].isdigit()), 16)
    small: dict[str, Any]
    if module.startswith("convnext"):
        small = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    elif module.startswith("swin"):
        small = {"embed_dim": 16, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 4, 4)}
    elif module == "naflexvit":
        small = {}
    else:
        small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": patch * 4}
        if "rope" in case.name or "dinov3" in case.name or "eva" in case.name or "pe_" in case.name:
            small |= {"embed_dim": 64, "num_heads": 2}
    if options.get("img_size") == 0:
        options["img_size"] = patch * 6 if "swin" not in module else 192 if "224" not in case.name else 448
    model = timm.create_model(case.name, pretrained=False, **(small | options))
    size = options.get("img_size") or small.get("img_size") or (model.pretrained_cfg["input_size"][-1] if "swin" in module else 64)
    height, width = size if isinstance(size, tuple) else (size, size)
    return model, torch.randn(2, options.get("in_chans", 3), height, width)


def save_timm(model: nn.Module, case: Case, folder: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(model, folder, safe_serialization=True)


# ---- transformers

_SMALL: dict[str, dict[str, Any]] = {
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 64},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 64},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    "": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
}
TRANSFORMERS = ("vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers", "beit", "siglip_vision_model", "siglip", "swin", "swinv2",
                "convnext", "convnextv2", "dinov3_vit", "dinov3_convnext", "clip_vision_model", "clip", "data2vec-vision", "vit_msn",
                "ijepa")
_IDLE_KEYS = ("model_type", "output_attentions", "architectures", "transformers_version", "id2label", "label2id", "dtype", "stage_names",
              "num_layers")
_CHANGES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("quick_gelu", "gelu_pytorch_tanh", "relu", "gelu_new"), "image_size": (48, [32, 64]), "patch_size": (4,),
    "num_channels": (1, 4), "window_size": (2, 8, 16), "pretrained_window_sizes": ([2, 2],), "num_attention_heads": (2,),
    "depths": ([1, 1],),
    "num_register_tokens": (2,), "mlp_ratio": (2,), "layer_norm_eps": (1e-3, 1e-12, 1e-6), "vision_use_head": (False,),
    "rope_theta": (50.0,), "out_features": (), "out_indices": (), "problem_type": ("regression",), "hidden_sizes": ([16, 24],),
}


def transformers_cases(transformers: Any) -> list[Case]:
    cases: list[Case] = []
    for kind in TRANSFORMERS:
        if kind not in transformers.CONFIG_MAPPING:
            continue
        names = _classes(transformers, kind)
        cases += [Case("transformers", name, {"model_type": kind}, shaken) for name in names for shaken in (True, False)]
        if not names:
            continue
        plain = _small_config(transformers, kind, {}).to_dict()
        for key, value in (plain.get("vision_config") or plain).items():
            if key not in _IDLE_KEYS:
                cases += [Case("transformers", names[0], {"model_type": kind, key: change}) for change in _changed(key, value)]
    return cases


def _classes(transformers: Any, kind: str) -> list[str]:
    """Those with a classifier first, then those without."""
    from transformers.models.auto import modeling_auto as auto

    tables = (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES, auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
              auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES)
    found = [table[kind] for table in tables if kind in table]
    flat = [name for one in found for name in (one if isinstance(one, (tuple, list)) else (one,))]
    return [name for name in dict.fromkeys(flat) if hasattr(transformers, name)]


def _changed(key: str, value: Any) -> tuple[Any, ...]:
    if key in _CHANGES:
        return _CHANGES[key]
    if isinstance(value, bool):
        return (not value,)
    return (value * 2 or 1,) if isinstance(value, int) else (value * 3 or 0.3,) if isinstance(value, float) else ()


def _small_config(transformers: Any, kind: str, changes: dict[str, Any]) -> Any:
    family = next((one for one in ("swin", "convnext", "dinov2") if one in kind), "")
    small = _SMALL[family] | ({"num_labels": 5} if kind not in ("siglip", "clip") else {}) | changes
    if family == "convnext" and kind.startswith("dinov3"):
        small = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64, "num_labels": 5} | changes
    known = transformers.CONFIG_MAPPING[kind]
    if kind in ("siglip", "clip"):
        return known(vision_config=small, num_labels=5, text_config={
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64})
    return known(**small)


def transformers_model(transformers: Any, case: Case) -> tuple[nn.Module, Tensor]:
    options = dict(case.options)
    config = _small_config(transformers, options.pop("model_type"), options)
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return getattr(transformers, case.name)(config), torch.randn(2, inner.num_channels, height, width)


def transformers_answers(model: Any, images: Tensor) -> list[Tensor]:
    """What a user might mean by the answers of a class: any of these has to be ours."""
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0
    inner = model if "text_config" not in model.config or "ForImageClassification" in type(model).__name__ else model.vision_model
    output = inner(pixel_values=images, return_dict=True)
    if getattr(output, "cls_logits", None) is not None and "WithTeacher" not in type(model).__name__:
        return [output.logits]
    if getattr(output, "logits", None) is not None and output.logits.ndim == 2:
        return [output.logits]
    base = getattr(model, model.base_model_prefix, inner) if not hasattr(output, "last_hidden_state") else inner
    hidden = base(pixel_values=images, return_dict=True) if not hasattr(output, "last_hidden_state") else output
    tokens = hidden.last_hidden_state
    if tokens.ndim == 4:
        return [hidden.pooler_output]
    return [one for one in (getattr(hidden, "pooler_output", None), tokens[:, 0], tokens.mean(dim=1), tokens[:, 1:].mean(dim=1))
            if one is not None]


def shaken(model: nn.Module, generator: torch.Generator) -> None:
    """Weights large enough that whatever is left out or swapped shows; what lies near one or above it stays near."""
    for name, value in [*model.named_parameters()]:
        noise = torch.randn(value.shape, generator=generator)
        value.data.copy_(value.data + noise * (0.2 if value.ndim < 2 or "scale" in name else 1.5 / max(value[0].numel(), 1) ** 0.5))
