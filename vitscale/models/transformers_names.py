"""The names that transformers' published files have for our weights, and what has to be cut, joined or filled in between."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.errors import CheckpointError
from vitscale.models.foreign_keys import ForeignTensors
from vitscale.models.position import sincos
from vitscale.recipe.schema import Model, Vit
from vitscale.shapes.vit import grid, num_placed, shape_of

Weights = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]         # (pattern of ours, theirs), each applied in its order

_BERT_LIKE: Names = (
    (r"attn\.qkv\.", "attention.attention.{}."), (r"attn\.proj\.", "attention.output.dense."), (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."), (r"norm1\.", "layernorm_before."), (r"norm2\.", "layernorm_after."),
)
_VIT: Names = (
    (r"^blocks\.", "encoder.layer."), *_BERT_LIKE, (r"^(fc_)?norm\.", "layernorm."), (r"^cls_token", "embeddings.cls_token"),
    (r"^dist_token", "embeddings.distillation_token"), (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
)
_DINO: Names = (
    (r"^blocks\.", "encoder.layer."), (r"attn\.qkv\.", "attention.attention.{}."), (r"attn\.proj\.", "attention.output.dense."),
    (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"), (r"^(fc_)?norm\.", "layernorm."), (r"^cls_token", "embeddings.cls_token"),
    (r"^reg_token", "embeddings.register_tokens"), (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
)
_BEIT: Names = (
    (r"attn\.relative_position_bias_table", "attention.attention.relative_position_bias.relative_position_bias_table"),
    (r"ls(\d)\.gamma", r"lambda_\1"), (r"^fc_norm\.", "pooler.layernorm."), (r"^reg_token", "embeddings.cls_token"), *_VIT,
)
_SIGLIP: Names = (
    (r"^blocks\.", "encoder.layers."), (r"attn\.qkv\.", "self_attn.{}_proj."), (r"attn\.proj\.", "self_attn.out_proj."),
    (r"\bnorm(\d)\.", r"layer_norm\1."), (r"^norm\.", "post_layernorm."), (r"^pos_embed", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
)
_SWIN: Names = (
    (r"attn\.q_bias", "attention.self.query.bias"), (r"attn\.v_bias", "attention.self.value.bias"),
    (r"attn\.qkv\.", "attention.self.{}."), (r"attn\.proj\.", "attention.output.dense."),
    (r"attn\.cpb_mlp\.", "attention.self.continuous_position_bias_mlp."), (r"attn\.", "attention.self."),
    (r"mlp\.fc1\.", "intermediate.dense."), (r"mlp\.fc2\.", "output.dense."), (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."), (r"^norm\.", "layernorm."), (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."), (r"^head\.fc\.", "classifier."), (r"^layers\.", "encoder.layers."),
)
_CONVNEXT: Names = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."), (r"^stem\.1\.", "embeddings.layernorm."), (r"^head\.norm\.", "layernorm."),
    (r"^head\.fc\.", "classifier."), (r"^stages\.", "encoder.stages."), (r"\.downsample\.", ".downsampling_layer."),
    (r"\.blocks\.", ".layers."), (r"conv_dw\.", "dwconv."), (r"mlp\.fc1\.", "pwconv1."), (r"mlp\.fc2\.", "pwconv2."),
    (r"mlp\.grn\.", "grn."), (r"\.gamma$", ".layer_scale_parameter"), (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
)
_QKV = ("query", "key", "value")
_MASKED = (r"embeddings\.mask_token", r"decoder\..*", r"lm_head\..*")           # of pretraining on hidden patches
_POOLER = (*_MASKED, r"pooler\..*")         # a layer behind the class token of classes without a classifier, which classifiers go without
_INDEX = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.attn_mask")       # buffers that older versions wrote down


@dataclass(frozen=True)
class Architecture:
    """One of transformers' architectures, as its files have it."""

    architecture: str               # the class with a classifier
    base: str                       # and the one without
    prefix: str                     # of all names but the classifiers', in files of the former
    names: Names
    parts: tuple[str, str, str] = _QKV      # what queries, keys and values are called
    idle: tuple[str, ...] = ()              # patterns of tensors, without the prefix, that no answer of ours depends on


KINDS: dict[str, Architecture] = {          # by transformers' model_type
    "vit": Architecture("ViTForImageClassification", "ViTModel", "vit.", (*_VIT, (r"^head\.", "classifier.")), idle=_POOLER),
    "vit_mae": Architecture("ViTMAEForPreTraining", "ViTMAEModel", "vit.", _VIT, idle=_MASKED),
    "deit": Architecture("DeiTForImageClassificationWithTeacher", "DeiTModel", "deit.",
                         ((r"^head\.", "cls_classifier."), (r"^head_dist\.", "distillation_classifier."), *_VIT), idle=_POOLER),
    "dinov2": Architecture("Dinov2ForImageClassification", "Dinov2Model", "dinov2.", (*_DINO, (r"^head\.", "classifier.")), idle=_MASKED),
    "dinov2_with_registers": Architecture("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel", "dinov2_with_registers.",
                                          (*_DINO, (r"^head\.", "classifier.")), idle=_MASKED),
    "beit": Architecture("BeitForImageClassification", "BeitModel", "beit.", (*_BEIT, (r"^head\.", "classifier.")),
                         idle=(*_MASKED, *_INDEX)),
    "siglip": Architecture("SiglipForImageClassification", "SiglipVisionModel", "vision_model.", (*_SIGLIP, (r"^head\.", "classifier.")),
                           ("q", "k", "v"), (r"text_model\..*", r"logit_(scale|bias)", r"embeddings\.position_ids", r"head\..*")),
    "swin": Architecture("SwinForImageClassification", "SwinModel", "swin.", _SWIN, idle=(*_MASKED, *_INDEX)),
    "swinv2": Architecture("Swinv2ForImageClassification", "Swinv2Model", "swinv2.", _SWIN, idle=(*_MASKED, *_INDEX)),
    "convnext": Architecture("ConvNextForImageClassification", "ConvNextModel", "convnext.", _CONVNEXT),
    "convnextv2": Architecture("ConvNextV2ForImageClassification", "ConvNextV2Model", "convnextv2.", _CONVNEXT),
}
_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.")


def their_names(kind: str, name: str, gated: bool = False) -> tuple[str, ...]:
    """Our name of a weight -> theirs, without the prefix; three of them where ours lies queries, keys and values side by side."""
    known = KINDS[kind]
    if kind.startswith("swin") and ".downsample." in name:      # theirs stands at the end of a stage, ours at the head of the next
        name = re.sub(r"^layers\.(\d+)", lambda found: f"layers.{int(found[1]) - 1}", name)
    if kind.startswith("dino") and gated:
        name = name.replace("mlp.fc1.", "mlp.weights_in.").replace("mlp.fc2.", "mlp.weights_out.")
    for pattern, theirs in known.names:
        name = re.sub(pattern, theirs, name)
    return tuple(name.replace("{}", part) for part in known.parts) if "{}" in name else (name,)


def to_transformers(kind: str, section: Model, weights: Mapping[str, Tensor]) -> Weights:
    """Our weights under the names, and in the shapes, of transformers' files; what theirs has and ours does not is filled in."""
    known, ours = KINDS[kind], dict(weights)
    if isinstance(section, Vit):
        ours |= _filled(kind, section, weights)
    theirs: Weights = {}
    for name, value in ours.items():
        names = their_names(kind, name, isinstance(section, Vit) and section.gated)
        for their_name, part in zip(names, value.chunk(len(names)), strict=True):
            if kind == "beit" and their_name.endswith("attention.key.bias"):
                continue        # the softmax over keys does not feel it: it adds the same to all of a query's products
            prefix = "" if their_name.startswith(_CLASSIFIERS) or (not section.classes and kind != "siglip") else known.prefix
            theirs[prefix + their_name] = _their_shape(kind, their_name, part).contiguous()
    return theirs


def from_transformers(kind: str, section: Model, theirs: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[
        Weights, list[str]]:
    """(transformers' weights under our names, for those of `shapes` (our names) that theirs has; what of theirs no answer depends on).

    Raises CheckpointError naming what is left over.
    """
    prefix, ours = KINDS[kind].prefix, {}
    known = ForeignTensors({name.removeprefix(prefix): value for name, value in theirs.items()})
    if len(known) < len(theirs):
        raise CheckpointError(f"has tensors of the same name with {prefix!r} before it and without; only one can be meant")
    for name in shapes:
        names = their_names(kind, name, isinstance(section, Vit) and section.gated)
        parts = [known.get(one) for one in names]
        if kind.startswith("dino") and name.startswith("head."):
            continue            # it looks at the patches' mean besides the class token
        if kind == "beit" and names[0].endswith("query.bias") and parts[0] is not None:
            parts[1] = torch.zeros_like(parts[0])       # its keys have none
        whole = [part for part in parts if part is not None]
        if len(whole) == len(names):
            ours[name] = torch.cat(whole).reshape(*_our_shape(kind, name, whole[0], len(whole)))
    left = known.close((*KINDS[kind].idle, *(one.replace(".", r"\.") + ".*" for one in _CLASSIFIERS)))
    if kind == "beit" and "pos_embed" in ours:      # its class token has a place, our register in its stead has none
        ours["reg_token"] = ours["reg_token"] + ours["pos_embed"][:, :1]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]
    return ours, left


def _filled(kind: str, section: Vit, weights: Mapping[str, Tensor]) -> Weights:
    """What transformers' class has besides, with the values at which it does nothing; and positions as one learned table."""
    width, filled = shape_of(section).width, {}
    placed = num_placed(section) if kind != "beit" else 1       # BEiT's class token is a register of ours
    if section.position != "relative":
        table = {"learned": lambda: weights["pos_embed"], "sincos": lambda: sincos((grid(section),) * 2, width),
                 "none": lambda: torch.zeros(1, grid(section) ** 2, width)}[section.position]()
        absent = placed + grid(section) ** 2 - table.shape[1]
        filled["pos_embed"] = torch.cat([torch.zeros(1, absent, width), table], dim=1)
    if not section.qkv_bias and kind in ("beit", "siglip"):
        filled |= {name.replace("weight", "bias"): torch.zeros(len(value)) for name, value in weights.items() if "attn.qkv." in name}
    if kind.startswith("dino"):
        filled["embeddings.mask_token"] = torch.zeros(1, width)
        if section.layer_scale is None:
            branches = [f"blocks.{block}.ls{branch}" for block in range(shape_of(section).depth) for branch in (1, 2)]
            filled |= {f"{branch}.gamma": torch.ones(width) for branch in branches}
        if section.classes:
            filled["head.weight"] = torch.cat([weights["head.weight"], torch.zeros_like(weights["head.weight"])], dim=1)
    return filled


def _their_shape(kind: str, their_name: str, value: Tensor) -> Tensor:
    if kind == "siglip" and "position_embedding" in their_name:
        return value[0]
    return value.view(1, 1, 1, -1) if kind == "convnextv2" and ".grn." in their_name else value


def _our_shape(kind: str, name: str, part: Tensor, count: int) -> tuple[int, ...]:
    if kind == "siglip" and name == "pos_embed":
        return (1, *part.shape)
    return (part.numel(),) if kind == "convnextv2" and ".grn." in name else (count * len(part), *part.shape[1:])


