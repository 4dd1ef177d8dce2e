"""Randomly sampled model sections, from all of a family's keys."""

import random

from vitscale.errors import RecipeError
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.schema import FAMILIES, Model
from vitscale.shapes.families import check_model

ACTS = ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
COMMON = {"classes": [0, 5], "channels": [1, 3], "hidden_act": ACTS, "norm_eps": [1e-5, 1e-6]}
# family -> (what is always there, values that each key may have besides its default)
VALUES: dict[str, tuple[dict, dict]] = {
    "vit": ({"width": 24, "depth": 2, "heads": 2, "mlp": 40, "patch": 4, "image": 20}, COMMON | {
        "pool": ["mean", "attention", "token_mean"], "pool_include_prefix": [True, False], "final_norm": [False], "pre_norm": [True],
        "pool_norm": [True],
        "pool_heads": [3], "pool_mlp": [20], "position": ["sincos", "rotary", "relative", "none"],
        "rope_type": ["dinov3", "axial", "mixed"], "relative_mlp": [6], "post_norm": [True],
        "rope_grid": [3],
        "rope_temperature": [10.0], "rope_offset": [1.0], "class_position": [False], "qkv_bias": [False], "key_bias": [False],
        "qk_norm": [True], "scale_attn_norm": [True], "scale_mlp_norm": [True], "gated": [True], "parallel": [True],
        "layer_scale": [0.1], "registers": [3], "class_tokens": [2], "head_hidden": [7], "attention": ["linear", "axial"],
        "position_interpolation": ["bilinear_antialias"], "patch_embed": ["overlap"]}),
    "swin": ({"width": 8, "depths": (1, 2), "heads": (2, 4), "window": 2, "patch": 2, "image": 16}, COMMON | {
        "version": [2], "position": ["learned"], "pretrained_windows": [(3, 0)], "windows": [(4, 2)]}),
    "convnext": ({"widths": (8, 16), "depths": (1, 2), "image": 16}, COMMON | {
        "version": [2], "stem": ["overlap", "overlap_tiered"], "kernel": [3, 5], "layer_scale": [0.1], "use_grn": [True, False],
        "head_hidden": [7]}),
}


def sampled(family: str, count: int, seed: int) -> list[Model]:
    """Sections that go together, a third of the keys off their defaults."""
    draw, (always, keys) = random.Random(f"{family} {seed}"), VALUES[family]
    found: list[Model] = []
    while len(found) < count:
        some = {key: draw.choice(values) for key, values in keys.items() if draw.random() < 0.25}
        section = FAMILIES[family](family=family, **always, **some)
        try:
            check_model(section)
        except RecipeError:
            continue
        if not model_contradictions(section):
            found.append(section)
    return found
