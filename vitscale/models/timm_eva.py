"""timm's classes Eva (EVA-02, DINOv3, RoPE-ViT, Perception Encoder), Beit and VisionTransformerRelPos: arguments as a model section."""

from typing import Any

from vitscale.models.foreign_keys import ForeignKeys
from vitscale.models.timm_arguments import POOLS, after_branches, norm_eps, pooling, side

_TURNS = {"cat": "axial", "dinov3": "dinov3", "mixed": "mixed"}


def eva(keys: ForeignKeys) -> dict[str, Any]:
    for key, default in {"num_kv_heads": None, "rope_mrope_section": None}.items():
        keys.must(key, default)
    post, scale = keys.take("use_post_norm", False), keys.take("init_values", None)
    if keys.take("attn_only_layer_scale", False) and scale is not None:
        keys.refuse("attn_only_layer_scale", "true is not expressed here: LayerScale is of both branches")
    keys.idle("qkv_fused", "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords")     # one layer or three; in training alone
    pool, registers = pooling(keys, "avg", keys.take("num_reg_tokens", 0))
    width, ratio = keys.take("embed_dim", 768), keys.take("mlp_ratio", 4.0)
    gated, align, scaled = keys.take("swiglu_mlp", False), keys.take("swiglu_align_to", 0), keys.take("scale_mlp", False)
    hidden = int(width * ratio)
    fc_norm = keys.take("use_fc_norm", None)
    fc_norm = pool == "avg" if fc_norm is None else fc_norm
    last = keys.take("use_post_transformer_norm", None)
    if fc_norm and last:
        keys.refuse("use_post_transformer_norm", "true is not expressed here with use_fc_norm: one norm follows the last block")
    heads = keys.take("num_heads", 12)
    values = {
        "family": "vit", "image": side(keys, "img_size", 224), "patch": side(keys, "patch_size", 16), "width": width, "heads": heads,
        "depth": keys.take("depth", 12), "mlp": hidden + (-hidden % align if gated and align else 0), "gated": gated,
        "qkv_bias": (bias := keys.take("qkv_bias", True)), "key_bias": keys.take("attn_type", "eva") == "rope" or not bias,
        "qk_norm": keys.take("qk_norm", False), "scale_mlp_norm": scaled, "scale_attn_norm": keys.take("scale_attn_inner", False),
        "layer_scale": None if post else scale, "post_norm": post, "norm_eps": norm_eps(keys, "LayerNorm"),
        "pre_norm": keys.take("use_pre_transformer_norm", False), "pool": POOLS.get(pool, "token"), "pool_norm": fc_norm,
        "final_norm": fc_norm or last is not False, "registers": registers, "position_interpolation": "bicubic_antialias",
        "class_position": not keys.take("no_embed_class", False)} | _positions(keys)
    keys.idle("attn_pool_num_heads", "attn_pool_mlp_ratio")
    if pool == "map":
        many, wide = keys.take("attn_pool_num_heads", None), keys.take("attn_pool_mlp_ratio", None)
        values |= {"pool_heads": many, "pool_mlp": int(width * (wide or ratio))}
    return values


def _positions(keys: ForeignKeys) -> dict[str, Any]:
    table, turned = keys.take("use_abs_pos_emb", True), keys.take("use_rot_pos_emb", False)
    of_turns = ("rope_type", "rope_temperature", "rope_grid_offset", "rope_grid_indexing", "rope_rotate_half", "ref_feat_shape")
    if not turned:
        keys.idle(*of_turns)
        return {"position": "learned" if table else "none"}
    kind = keys.take("rope_type", "cat")
    if kind not in _TURNS:
        keys.refuse("rope_type", f"{kind!r} is not expressed here; {' and '.join(map(repr, _TURNS))} are")
    keys.idle("rope_grid_indexing", "rope_rotate_half")      # in which order a head's numbers lie: models/timm_tensors.py
    found = {"position": "learned" if table else "rotary", "rope_type": _TURNS.get(kind, "axial"),
             "rope_temperature": float(keys.take("rope_temperature", 10000.0))}
    reference, offset = side(keys, "ref_feat_shape", 0), float(keys.take("rope_grid_offset", 0.0))
    if kind == "mixed":     # which has neither of the two
        keys.must("rope_rotate_half", False, why="turns other pairs than those of each frequency, with rope_type mixed,")
        return found
    return found | {"rope_offset": offset, "rope_grid": (reference or None) if kind == "cat" else None}


def beit(keys: ForeignKeys) -> dict[str, Any]:
    pool, registers = pooling(keys, "avg", 0, always=True)
    fc_norm, gated = keys.take("use_fc_norm", None), keys.take("swiglu_mlp", False)
    table = keys.take("use_abs_pos_emb", True)
    shared, own = keys.take("use_shared_rel_pos_bias", False), keys.take("use_rel_pos_bias", False)
    if table and (shared or own):
        keys.refuse("use_abs_pos_emb", "true is not expressed here together with a bias of relative positions")
    if shared and own:
        keys.refuse("use_shared_rel_pos_bias", "true is not expressed here together with biases of each block's own")
    width = keys.take("embed_dim", 768)
    return {
        "family": "vit", "image": side(keys, "img_size", 224), "patch": side(keys, "patch_size", 16), "width": width,
        "depth": keys.take("depth", 12), "heads": keys.take("num_heads", 12), "mlp": int(width * keys.take("mlp_ratio", 4.0)),
        "gated": gated, "qkv_bias": (bias := keys.take("qkv_bias", True)), "key_bias": not bias, "registers": registers,
        "scale_mlp_norm": keys.take("scale_mlp", False), "layer_scale": keys.take("init_values", None), "pool": POOLS.get(pool, "token"),
        "norm_eps": norm_eps(keys, "LayerNorm"), "pool_norm": pool == "avg" if fc_norm is None else fc_norm,
        "position": "learned" if table else "relative" if shared or own else "none",
        "position_interpolation": "geometric" if shared or own else "bicubic_antialias"}


def relpos(keys: ForeignKeys) -> dict[str, Any]:
    for key, default in {"embed_layer": "PatchEmbed", "act_layer": None, "norm_layer": None}.items():   # no names are taken
        keys.must(key, default)
    post, kind = after_branches(keys, "RelPosBlock", "ResPostRelPosBlock"), keys.take("rel_pos_type", "mlp")
    if kind not in ("mlp", "bias"):
        keys.refuse("rel_pos_type", f"{kind!r} is not expressed here; 'mlp' and 'bias' are")
    keys.idle("shared_rel_pos")         # each block has its own here: models/timm_tensors.py
    pool, registers = pooling(keys, "avg", 0, token=False)
    hidden, scale = keys.take("rel_pos_dim", None), keys.take("init_values", 1e-6)
    width = keys.take("embed_dim", 768)
    return {
        "family": "vit", "image": side(keys, "img_size", 224), "patch": side(keys, "patch_size", 16), "width": width,
        "depth": keys.take("depth", 12), "heads": keys.take("num_heads", 12), "mlp": int(width * keys.take("mlp_ratio", 4.0)),
        "qkv_bias": keys.take("qkv_bias", True), "qk_norm": keys.take("qk_norm", False), "layer_scale": None if post else scale or None,
        "post_norm": post, "registers": registers, "pool": POOLS.get(pool, "token"), "pool_norm": keys.take("fc_norm", False),
        "norm_eps": 1e-6, "position": "relative",
        **({"relative_mlp": hidden or 128} if kind == "mlp" else {"position_interpolation": "geometric"})}
