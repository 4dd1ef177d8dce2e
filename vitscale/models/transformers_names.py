"""The names that transformers' published files have for our weights, and what has to be cut, joined or filled in between."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import CheckpointError
from vitscale.models.attention import whole_bias
from vitscale.models.foreign_keys import ForeignTensors
from vitscale.models.position import sincos
from vitscale.recipe.schema import Model, Vit
from vitscale.shapes.vit import grid, num_placed, shape_of

Weights = dict[str, Tensor]
Names = tuple[tuple[str, str], ...]         # (pattern of ours, theirs), each applied in its order

_BERT_LIKE: Names = (
    (r"attn\.qkv\.", "attention.attention.{query,key,value}."), (r"attn\.proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."), (r"mlp\.fc2\.", "output.dense."), (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
)
_HEAD: Names = ((r"^head\.", "classifier."),)
_VIT: Names = (
    *_HEAD, (r"^blocks\.", "encoder.layer."), *_BERT_LIKE, (r"^(fc_)?norm\.", "layernorm."), (r"^cls_token", "embeddings.cls_token"),
    (r"^dist_token", "embeddings.distillation_token"), (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
)
_MAE: Names = (
    (r"^decoder_blocks\.", "decoder.decoder_encoder.layer."), (r"^decoder_(embed|norm|pred)\.", r"decoder.decoder_\1."),
    (r"^mask_token", "decoder.mask_token"), *_VIT,
)
_DINO: Names = (
    *_HEAD, (r"^blocks\.", "encoder.layer."), (r"attn\.qkv\.", "attention.attention.{query,key,value}."),
    (r"attn\.proj\.", "attention.output.dense."), (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"), (r"^(fc_)?norm\.", "layernorm."),
    (r"^cls_token", "embeddings.cls_token"), (r"^reg_token", "embeddings.register_tokens"),
    (r"^pos_embed", "embeddings.position_embeddings"), (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
)
_DINO_GATED: Names = ((r"mlp\.fc1\.", "mlp.weights_in."), (r"mlp\.fc2\.", "mlp.weights_out."))
_DINO3: Names = (
    (r"^fc_norm\.", "norm."),
    (r"^blocks\.", "layer."), (r"attn\.qkv\.", "attention.{q,k,v}_proj."), (r"attn\.proj\.", "attention.o_proj."),
    (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"), (r"mlp\.fc1\.", "mlp.up_proj."), (r"mlp\.fc2\.", "mlp.down_proj."),
    (r"^cls_token", "embeddings.cls_token"), (r"^reg_token", "embeddings.register_tokens"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
)
_DINO3_GATED: Names = ((r"mlp\.fc1\.", "mlp.{gate,up}_proj."),)
_BEIT: Names = (
    (r"attn\.relative_position_bias_table", "attention.attention.relative_position_bias.relative_position_bias_table"),
    (r"ls(\d)\.gamma", r"lambda_\1"), (r"^fc_norm\.", "pooler.layernorm."), (r"^reg_token", "embeddings.cls_token"), *_VIT,
)
_SIGLIP: Names = (
    *_HEAD, (r"^blocks\.", "encoder.layers."), (r"attn\.qkv\.", "self_attn.{q,k,v}_proj."), (r"attn\.proj\.", "self_attn.out_proj."),
    (r"\bnorm(\d)\.", r"layer_norm\1."), (r"^norm\.", "post_layernorm."), (r"^pos_embed", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."), (r"^attn_pool\.(q|kv)\.", r"head.attention.\1."),
    (r"^attn_pool\.proj\.", "head.attention.out_proj."), (r"^attn_pool\.norm\.", "head.layernorm."), (r"^attn_pool\.mlp\.", "head.mlp."),
    (r"^attn_pool\.latent", "head.probe"),
)
_CLIP: Names = (*_SIGLIP, (r"^norm_pre\.", "pre_layrnorm."), (r"^(cls|reg)_token", "embeddings.class_embedding"))
_SWIN: Names = (
    (r"attn\.q_bias", "attention.self.query.bias"), (r"attn\.v_bias", "attention.self.value.bias"),
    (r"attn\.qkv\.", "attention.self.{query,key,value}."), (r"attn\.proj\.", "attention.output.dense."),
    (r"attn\.cpb_mlp\.", "attention.self.continuous_position_bias_mlp."), (r"attn\.", "attention.self."),
    (r"mlp\.fc1\.", "intermediate.dense."), (r"mlp\.fc2\.", "output.dense."), (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."), (r"^norm\.", "layernorm."), (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."), (r"^pos_embed", "embeddings.position_embeddings"), (r"^head\.fc\.", "classifier."),
    (r"^layers\.", "encoder.layers."),
)
_CONVNEXT: Names = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."), (r"^stem\.1\.", "embeddings.layernorm."), (r"^head\.norm\.", "layernorm."),
    (r"^head\.fc\.", "classifier."), (r"^stages\.", "encoder.stages."), (r"\.downsample\.", ".downsampling_layer."),
    (r"\.blocks\.", ".layers."), (r"conv_dw\.", "dwconv."), (r"mlp\.fc1\.", "pwconv1."), (r"mlp\.fc2\.", "pwconv2."),
    (r"mlp\.grn\.", "grn."), (r"\.gamma$", ".layer_scale_parameter"), (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
)
_CONVNEXT_DINO: Names = (
    (r"^stem\.", "stages.0.downsample_layers."), (r"\.downsample\.", ".downsample_layers."), (r"^head\.norm\.", "layer_norm."),
    (r"\.blocks\.", ".layers."), (r"conv_dw\.", "depthwise_conv."), (r"mlp\.fc(\d)\.", r"pointwise_conv\1."),
    (r"(layers\.\d+)\.norm\.", r"\1.layer_norm."),
)
_MASKED = (r"embeddings\.mask_token", r"decoder\..*", r"lm_head\..*")           # of pretraining on hidden patches
_POOLER = (*_MASKED, r"pooler\..*")         # a layer behind the class token of classes without a classifier, which classifiers go without
_INDEX = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.attn_mask")       # buffers that older versions wrote down
_TEXTS = (r"text_model\..*", r"logit_(scale|bias)", r"embeddings\.position_ids", r"(visual|text)_projection\..*")
_PROBE = r"head\..*"                        # SigLIP's attention pooling, which its classifiers go without


@dataclass(frozen=True)
class Architecture:
    """One of transformers' architectures, as its files have it."""

    architecture: str               # the class with a classifier; "" where there is none
    base: str                       # and the one without
    prefix: str                     # of all names but the classifiers', in files of the former
    names: Names
    idle: tuple[str, ...] = ()              # patterns of tensors, without the prefix, that no answer of ours depends on
    gated: Names = ()                       # names that come first where MLPs are gated
    keyless: bool = False                   # keys never have a bias
    pooler: bool = False                    # pooled features of the class without a classifier are its pooler_output


def _swin_of(name: str, kind: str) -> Architecture:
    return Architecture(f"{name}ForImageClassification", f"{name}Model", f"{kind}.", _SWIN, (*_MASKED, *_INDEX), pooler=True)


KINDS: dict[str, Architecture] = {          # by transformers' model_type
    "vit": Architecture("ViTForImageClassification", "ViTModel", "vit.", _VIT, _POOLER),
    "vit_mae": Architecture("ViTMAEForPreTraining", "ViTMAEModel", "vit.", _MAE, _MASKED),
    "vit_msn": Architecture("ViTMSNForImageClassification", "ViTMSNModel", "vit.", _VIT, _MASKED),
    "ijepa": Architecture("IJepaForImageClassification", "IJepaModel", "ijepa.", _VIT, _POOLER),
    "deit": Architecture("DeiTForImageClassificationWithTeacher", "DeiTModel", "deit.",
                         ((r"^head\.", "cls_classifier."), (r"^head_dist\.", "distillation_classifier."), *_VIT), _POOLER),
    "deit_by_label": Architecture("DeiTForImageClassification", "DeiTModel", "deit.", (
        (r"^head\.", "classifier."), (r"^reg_token", "embeddings.distillation_token"), *_VIT), _POOLER),
    "dinov2": Architecture("Dinov2ForImageClassification", "Dinov2Model", "dinov2.", _DINO, _MASKED, _DINO_GATED),
    "dinov2_with_registers": Architecture("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel",
                                          "dinov2_with_registers.", _DINO, _MASKED, _DINO_GATED),
    "dinov3_vit": Architecture("", "DINOv3ViTModel", "model.", _DINO3, _MASKED, _DINO3_GATED),
    "dinov3_convnext": Architecture("", "DINOv3ConvNextModel", "model.", _CONVNEXT_DINO, pooler=True),
    "beit": Architecture("BeitForImageClassification", "BeitModel", "beit.", _BEIT, (*_MASKED, *_INDEX), keyless=True),
    "data2vec-vision": Architecture("Data2VecVisionForImageClassification", "Data2VecVisionModel", "data2vec_vision.", _BEIT,
                                    (*_MASKED, *_INDEX), keyless=True),
    "siglip": Architecture("SiglipForImageClassification", "SiglipVisionModel", "vision_model.", _SIGLIP, (*_TEXTS, _PROBE)),
    "siglip_vision_model": Architecture("", "SiglipVisionModel", "vision_model.", _SIGLIP, (*_TEXTS, _PROBE)),
    "siglip2": Architecture("Siglip2ForImageClassification", "Siglip2VisionModel", "vision_model.", _SIGLIP, (*_TEXTS, _PROBE)),
    "siglip2_vision_model": Architecture("", "Siglip2VisionModel", "vision_model.", _SIGLIP, (*_TEXTS, _PROBE)),
    "clip": Architecture("CLIPForImageClassification", "CLIPVisionModel", "vision_model.", _CLIP,
                         (*_TEXTS, r"post_layernorm\..*"), pooler=True),
    "clip_vision_model": Architecture("", "CLIPVisionModel", "vision_model.", _CLIP, _TEXTS, pooler=True),
    "swin": _swin_of("Swin", "swin"), "swinv2": _swin_of("Swinv2", "swinv2"),
    "convnext": Architecture("ConvNextForImageClassification", "ConvNextModel", "convnext.", _CONVNEXT, pooler=True),
    "convnextv2": Architecture("ConvNextV2ForImageClassification", "ConvNextV2Model", "convnextv2.", _CONVNEXT, pooler=True),
}
_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.")


def kind_of_file(config: Mapping[str, Any]) -> str:
    """Of KINDS: the model_type, but where one of its classes sees the same tensors otherwise."""
    by_class = {"DeiTForImageClassification": "deit_by_label"}
    return next((by_class[name] for name in config.get("architectures") or () if name in by_class), str(config.get("model_type")))


def their_names(kind: str, section: Model, name: str, rows: int = 0) -> tuple[str, ...]:
    """Our name of a weight, of so many `rows` -> theirs, without the prefix; several where ours lays what theirs has apart one below the
    other: queries, keys and values (keys may have no bias), a gate and what it lets through."""
    known = KINDS[kind]
    if kind.startswith("swin") and ".downsample." in name:      # theirs stands at the end of a stage, ours at the head of the next
        name = re.sub(r"^layers\.(\d+)", lambda found: f"layers.{int(found[1]) - 1}", name)
    gated = isinstance(section, Vit) and section.gated
    keyless = isinstance(section, Vit) and name.endswith("attn.qkv.bias") and rows == 2 * shape_of(section).width
    for pattern, theirs in (*(known.gated if gated else ()), *known.names):
        name = re.sub(pattern, theirs, name)
    found = re.search(r"\{(.*?)\}", name)
    if found is None:
        return (name,)
    parts = found[1].split(",")
    return tuple(name.replace(found[0], part) for part in (parts[::2] if keyless else parts))


def to_transformers(kind: str, section: Model, weights: Mapping[str, Tensor]) -> Weights:
    """Our weights under the names, and in the shapes, of transformers' files; what theirs has and ours does not is filled in."""
    known, ours = KINDS[kind], dict(weights)
    if isinstance(section, Vit):
        ours |= _filled(kind, section, weights)
        ours = _biases(kind, section, ours)
    theirs: Weights = {}
    for name, value in ours.items():
        names = their_names(kind, section, name, len(value))
        for their_name, part in zip(names, value.chunk(len(names)), strict=True):
            prefix = "" if their_name.startswith(_CLASSIFIERS) or (not section.classes and "siglip" not in kind) else known.prefix
            theirs[prefix + their_name] = _their_shape(kind, section, their_name, part).contiguous()
    for last in ("weight", "bias"):     # their attention pooling has queries, keys and values in one
        pieces = [theirs.pop(name, None) for name in (f"{known.prefix}head.attention.{part}.{last}" for part in ("q", "kv"))]
        if all(piece is not None for piece in pieces):
            theirs[f"{known.prefix}head.attention.in_proj_{last}"] = torch.cat([piece for piece in pieces if piece is not None])
    return theirs


def from_transformers(kind: str, section: Model, theirs: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[
        Weights, list[str]]:
    """(transformers' weights under our names, for those of `shapes` (our names) that theirs has; what of theirs no answer depends on).

    Raises CheckpointError naming what is left over.
    """
    prefix, ours = KINDS[kind].prefix, {}
    found = {name.removeprefix(prefix): value for name, value in theirs.items()}
    if len(found) < len(theirs):
        raise CheckpointError(f"has tensors of the same name with {prefix!r} before it and without; only one can be meant")
    known = ForeignTensors(_apart(section, found))
    for name, shape in shapes.items():
        names = their_names(kind, section, name, shape[0] if shape else 0)
        whole = [part for part in (known.get(one) for one in names) if part is not None]
        if len(whole) == len(names):
            ours[name] = _our_shape(kind, section, name, torch.cat(whole) if len(whole) > 1 else whole[0])
    left = known.close((*KINDS[kind].idle, *(one.replace(".", r"\.") + ".*" for one in _CLASSIFIERS)))
    if "pos_embed" in ours and "reg_token" in ours and ours["pos_embed"].shape[1] == shapes["pos_embed"][1] + 1:
        table, place = ours["pos_embed"], shapes["pos_embed"][1] - grid(section) ** 2 if isinstance(section, Vit) else 0
        ours["reg_token"] = ours["reg_token"] + table[:, place:place + 1]       # our register in another token's stead has no place
        ours["pos_embed"] = torch.cat([table[:, :place], table[:, place + 1:]], dim=1)
    return ours, left


def simplest(section: Model, weights: Weights) -> tuple[Model, Weights]:
    """A section and its weights; one whose classifier does not look at the mean beside the class token, as `to_transformers` writes it for
    DINOv2's class, is one that pools the class token."""
    weight = weights.get("head.weight")
    if not isinstance(section, Vit) or section.pool != "token_mean" or weight is None or weight[:, shape_of(section).width:].any():
        return section, weights
    return section.model_copy(update={"pool": "token"}), weights | {"head.weight": weight[:, :shape_of(section).width].clone()}


def _apart(section: Model, theirs: Weights) -> Weights:
    """What theirs has in one piece or once for all blocks, as ours has it."""
    found = {name: value for name, value in theirs.items() if value.numel()}      # DINOv3 has registers without rows
    if not isinstance(section, Vit):
        return found
    if section.pool == "attention":
        for last in ("weight", "bias"):
            if (whole := found.pop(f"head.attention.in_proj_{last}", None)) is not None:
                found[f"head.attention.q.{last}"], found[f"head.attention.kv.{last}"] = whole.split([len(whole) // 3, 2 * len(whole) // 3])
    name = "relative_position_bias.relative_position_bias_table"
    shared = found.pop(f"encoder.{name}", None)
    if shared is not None:
        found |= {f"encoder.layer.{block}.attention.attention.{name}": shared.clone() for block in range(shape_of(section).depth)}
    return {re.sub(r"^decoder\.decoder_layers\.", "decoder.decoder_encoder.layer.", name): value for name, value in found.items()}


def _biases(kind: str, section: Vit, ours: Weights) -> Weights:
    """Of queries, keys and values, as the kind has them: the softmax over keys does not feel theirs, which adds the same to all of a
    query's products, unless positions turn them."""
    def fitting(value: Tensor) -> Tensor:
        if KINDS[kind].keyless and len(value) == 3 * shape_of(section).width:
            query, _, rest = value.chunk(3)
            return torch.cat([query, rest])
        both = len(value) == 2 * shape_of(section).width and not KINDS[kind].keyless and kind != "dinov3_vit"
        return whole_bias(value) if both else value

    return {name: fitting(value) if name.endswith("attn.qkv.bias") else value for name, value in ours.items()}


def _is_first(kind: str, section: Vit) -> bool:
    """Whether their class token is the first register of ours."""
    return section.pool == "mean" and kind in ("beit", "data2vec-vision", "clip")


def _filled(kind: str, section: Vit, weights: Mapping[str, Tensor]) -> Weights:
    """What transformers' class has besides, with the values at which it does nothing; and positions as one learned table."""
    width, filled = shape_of(section).width, {}
    placed = 1 if _is_first(kind, section) else num_placed(section)
    if section.position not in ("relative", "rotary"):
        table = {"learned": lambda: weights["pos_embed"], "sincos": lambda: sincos((grid(section),) * 2, width),
                 "none": lambda: torch.zeros(1, grid(section) ** 2, width)}[section.position]()
        absent = placed + grid(section) ** 2 - table.shape[1]
        filled["pos_embed"] = torch.cat([torch.zeros(1, absent, width), table], dim=1)
    if not section.qkv_bias and (KINDS[kind].keyless or "siglip" in kind or "clip" in kind):
        filled |= {name.replace("weight", "bias"): torch.zeros(len(value)) for name, value in weights.items() if "attn.qkv." in name}
    if kind == "clip":
        filled |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}      # its classifier goes without, its class does not
    if kind.startswith("dino"):
        mask = torch.zeros(1, 1, width)
        filled["embeddings.mask_token"] = mask if kind == "dinov3_vit" else mask[0]
        if kind == "dinov3_vit" and not section.registers:
            filled["reg_token"] = torch.zeros(1, 0, width)
        if section.layer_scale is None:
            branches = [f"blocks.{block}.ls{branch}" for block in range(shape_of(section).depth) for branch in (1, 2)]
            filled |= {f"{branch}.gamma": torch.ones(width) for branch in branches}
        if section.classes and section.pool == "token":
            filled["head.weight"] = torch.cat([weights["head.weight"], torch.zeros_like(weights["head.weight"])], dim=1)
    return filled


def _their_shape(kind: str, section: Model, their_name: str, value: Tensor) -> Tensor:
    if their_name == "embeddings.position_embedding.weight":
        return value[0]
    if their_name == "embeddings.class_embedding":
        return value[0, 0]
    if kind.startswith("siglip2") and their_name == "embeddings.patch_embedding.weight":
        return value.permute(0, 2, 3, 1).flatten(1)
    return value.view(1, 1, 1, -1) if kind == "convnextv2" and ".grn." in their_name else value


def _our_shape(kind: str, section: Model, name: str, value: Tensor) -> Tensor:
    if "siglip" in kind or "clip" in kind:
        if name == "pos_embed":
            return value[None]
        if name in ("cls_token", "reg_token"):
            return value[None, None]
        if kind.startswith("siglip2") and name == "patch_embed.proj.weight" and isinstance(section, Vit) and value.ndim == 2:
            return value.unflatten(1, (section.patch, section.patch, section.channels)).permute(0, 3, 1, 2)
    return value.flatten() if kind == "convnextv2" and ".grn." in name else value
