"""What contradicts itself inside a model section, as far as it shows without knowing the named sizes (those: shapes/families.py)."""

from vitscale.recipe import external
from vitscale.recipe.schema import External, Model, Vit


def model_contradictions(model: Model) -> list[tuple[str, str]]:
    """(dotted key, sentence) for every combination that cannot work."""
    if isinstance(model, External):
        return external.problems(model)
    return _vit(model) if isinstance(model, Vit) else []


_BELONGS = {
    "pre_norm": "belongs to model.patch_embed patch", "hidden_act": "is of MLPs without a gate, and model.gated has one: silu",
    "key_bias": "belongs to model.qkv_bias, without which keys have none anyway",
    "pool_include_prefix": "belongs to model.pool mean or attention", "pool_heads": "belongs to model.pool attention",
    "pool_mlp": "belongs to model.pool attention", "relative_mlp": "belongs to model.position relative",
    "post_norm": "goes neither with model.parallel nor with model.layer_scale, in whose place its norms stand",
}


def _turned(model: Vit) -> list[tuple[str, str]]:
    """Rotary positions and what belongs to them."""
    turned, found = model.position == "rotary" or model.rope_type is not None, []
    rotary = "model.position rotary or a model.rope_type"
    for key, belongs, whose in (
            ("rope_temperature", turned, rotary), ("rope_grid", model.rope_type == "axial", "model.rope_type axial"),
            ("rope_offset", turned and model.rope_type != "mixed", f"{rotary}, mixed not among them"),
            *((key, turned and model.rope_type in (None, "dinov3"), f"{rotary}, axial and mixed not among them")
              for key in ("rope_shift", "rope_jitter", "rope_rescale"))):
        if getattr(model, key) != Vit.model_fields[key].default and not belongs:
            found.append((f"model.{key}", f"belongs to {whose}"))
    if model.rope_type == "mixed" and (model.attention != "full" or model.position == "relative"):
        found.append(("model.rope_type", f"mixed belongs to model.attention full and any model.position but relative, not to "
                      f"{model.attention} and {model.position}"))
    return found


def _drop_path(model: Vit) -> list[tuple[str, str]]:
    """Groups out of which a share of the images leaves out a branch."""
    group = model.drop_path_group
    if group is None:
        return []
    if not model.drop_path:
        return [("model.drop_path_group", "belongs to model.drop_path, which is 0")]
    if model.parallel:
        return [("model.drop_path_group", "does not go with model.parallel, whose two branches share one norm of all images")]
    if round((1 - model.drop_path) * group) == group:
        return [("model.drop_path_group", f"{model.drop_path:g} of {group} images are none; {int(0.5 / model.drop_path) + 1} are enough")]
    return []


def _vit(model: Vit) -> list[tuple[str, str]]:
    found = []
    if model.size is None and None in (model.width, model.depth, model.heads, model.mlp):
        absent = [key for key in ("width", "depth", "heads", "mlp") if getattr(model, key) is None]
        found.append(("model.size", f"give a size, or also {', '.join('model.' + key for key in absent)}"))
    if model.image % model.patch:
        low = model.image // model.patch * model.patch
        near = f"{low} or {low + model.patch}" if low else str(model.patch)
        found.append(("model.image", f"{model.image} is not divisible by model.patch {model.patch}; the nearest sizes are {near}"))
    if model.width and model.heads and model.width % model.heads:
        found.append(("model.heads", f"{model.heads} heads do not divide the width {model.width}"))
    if model.position == "sincos" and model.width and model.width % 4:
        found.append(("model.width", f"sin-cos positions want a width divisible by 4, got {model.width}"))
    if model.family == "deit" and (model.pool != "token" or model.pool_norm):
        found.append(("model.pool", "family deit has a token for each of its two heads: it wants model.pool token without model.pool_norm"))
    if model.class_tokens > 1 and model.pool != "token":
        found.append(("model.class_tokens", f"belongs to model.pool token, not to {model.pool}"))
    if not model.final_norm and model.pool_norm:
        found.append(("model.pool_norm", "is a norm after the last block, which model.final_norm false says there is none of"))
    found += _turned(model)
    if model.position_interpolation == "geometric" and model.position != "relative":
        found.append(("model.position_interpolation", f"geometric is of biases by offset, model.position relative, not {model.position}"))
    attentive = model.pool == "attention"
    for key, belongs in (("pre_norm", model.patch_embed == "patch"), ("hidden_act", not model.gated or attentive),
                         ("key_bias", model.qkv_bias), ("pool_include_prefix", model.pool == "mean" or attentive),
                         ("pool_heads", attentive), ("pool_mlp", attentive), ("relative_mlp", model.position == "relative"),
                         ("post_norm", not model.parallel and model.layer_scale is None)):
        if getattr(model, key) != Vit.model_fields[key].default and not belongs:
            found.append((f"model.{key}", _BELONGS[key]))
    found += _drop_path(model)
    if model.parallel and model.layer_scale is not None:
        found.append(("model.layer_scale", "does not go with model.parallel, whose paper has none"))
    for key, kind in (("window", "local"), ("halo", "local"), ("sparse_block", "sparse"), ("sparse_random", "sparse")):
        if model.attention != kind and getattr(model, key) != Vit.model_fields[key].default:
            found.append((f"model.{key}", f"belongs to model.attention {kind}, not to {model.attention}"))
    if model.patch_embed != "hybrid" and (model.hybrid_width, model.hybrid_depths) != (64, None):
        found.append(("model.hybrid_width", f"with hybrid_depths it belongs to model.patch_embed hybrid, not to {model.patch_embed}"))
    if model.hybrid_width % 32:
        found.append(("model.hybrid_width", f"{model.hybrid_width} is not divisible into groups of 32"))
    side = model.image // model.patch
    if model.attention == "local" and side % model.window:
        fitting = ", ".join(str(window) for window in range(1, side + 1) if side % window == 0)
        found.append(("model.window", f"{model.window} does not divide the {side} patches on a side; these do: {fitting}"))
    if model.attention == "axial" and model.heads == 1:
        found.append(("model.heads", "axial attention wants at least two: one along rows, one along columns"))
    num_blocks = -(-side * side // model.sparse_block)
    if model.attention == "sparse" and num_blocks <= 3 + model.sparse_random:
        found.append(("model.sparse_block", f"{model.sparse_block} of {side * side} patches are {num_blocks} blocks, of which each"
                      f" would see {3 + model.sparse_random}, which is all: smaller blocks, or model.attention full"))
    if model.mup_base_head_width is not None and model.mup_base_width is None:
        found.append(("model.mup_base_head_width", "belongs to model.mup_base_width"))
    if model.mup_base_width is not None and (model.attention != "full" or model.patch_embed != "patch" or model.head_hidden is not None
                                             or model.relative_mlp is not None or model.rope_type == "mixed" or model.post_norm):
        found.append(("model.mup_base_width", "muP is worked out for attention full, patch_embed patch and none of head_hidden, "
                      "relative_mlp, post_norm and rope_type mixed"))
    if model.position == "relative" and model.attention != "full":
        found.append(("model.position", f"a bias for each offset belongs to model.attention full, not to {model.attention}"))
    return found
