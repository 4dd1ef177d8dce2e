"""Sections drawn from all of a family's keys: the planner counts what the built model has, and what torch does."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.errors import RecipeError
from vitscale.models import build_model
from vitscale.plan import anatomy_of, count_params, forward_flops
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.schema import FAMILIES, Model
from vitscale.shapes.families import check_model

ACTS = ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
COMMON = {"classes": [0, 5], "channels": [1, 3], "hidden_act": ACTS, "norm_eps": [1e-5, 1e-6]}
# family -> (what is always there, values that each key may have besides its default)
DRAWS: dict[str, tuple[dict, dict]] = {
    "vit": ({"width": 24, "depth": 2, "heads": 2, "mlp": 40, "patch": 4, "image": 20}, COMMON | {
        "pool": ["mean", "attention", "token_mean"], "pool_include_prefix": [True, False], "final_norm": [False], "pre_norm": [True],
        "pool_norm": [True],
        "pool_heads": [3], "pool_mlp": [20], "position": ["sincos", "rotary", "relative", "none"], "rope_type": ["dinov3", "axial"],
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
COUNT = 12      # of each family


def drawn(family: str, count: int, seed: int) -> list[Model]:
    """Sections that go together, a third of the keys off their defaults."""
    draw, (always, keys) = random.Random(f"{family} {seed}"), DRAWS[family]
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


@pytest.mark.parametrize("family", DRAWS)
def test_a_drawn_section_costs_what_is_built_and_counted(family: str) -> None:
    for section in drawn(family, COUNT, seed=0):
        said = {key: value for key, value in section.model_dump().items() if key in DRAWS[family][1]}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = build_model(section)
            model(torch.empty(1, section.channels, section.image, section.image))
        assert count_params(section) == sum(p.numel() for p in model.parameters()), said
        units = anatomy_of(section).units
        assert [unit.params for unit in units] == [sum(p.numel() for p in unit.parameters()) for unit in model.units()], said
        assert forward_flops(section) == counter.get_total_flops(), said
