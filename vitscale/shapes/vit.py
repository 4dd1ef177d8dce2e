"""The named sizes of a Vision Transformer, and which numbers a recipe's model section means."""

from dataclasses import dataclass
from typing import Any

from vitscale.errors import RecipeError
from vitscale.recipe.schema import Vit

LOOK_WIDTH = 64         # of adaptive: what the first look at a patch finds
HYBRID_GROUPS = 32      # of hybrid: groups of a GroupNorm (Wu & He 2018)


@dataclass(frozen=True)
class Shape:
    """What the parameters depend on besides patch, image and head."""

    width: int      # D
    depth: int      # L, number of blocks
    heads: int      # H; each is D / H wide
    mlp: int        # hidden width of a block's MLP


SIZES = {
    "tiny": Shape(192, 12, 3, 768),             # Ti: Touvron et al. 2021 (DeiT), table 1
    "small": Shape(384, 12, 6, 1536),           # S:  Touvron et al. 2021 (DeiT), table 1
    "base": Shape(768, 12, 12, 3072),           # B:  Dosovitskiy et al. 2021, table 1
    "large": Shape(1024, 24, 16, 4096),         # L:  Dosovitskiy et al. 2021, table 1
    "so400m": Shape(1152, 27, 16, 4304),        # SoViT-400m: Alabdulmohsin et al. 2023, section 4
    "huge": Shape(1280, 32, 16, 5120),          # H:  Dosovitskiy et al. 2021, table 1
    "giant": Shape(1408, 40, 16, 6144),         # g:  Zhai et al. 2022, table 2
    "gigantic": Shape(1664, 48, 16, 8192),      # G:  Zhai et al. 2022, table 2
}


def _resolve(model: Vit) -> Shape | None:
    """The size with the explicit numbers put over it; None when a number is in neither."""
    named = SIZES[model.size] if model.size else None
    numbers = []
    for key in ("width", "depth", "heads", "mlp"):
        given = getattr(model, key)
        if given is None and named is None:
            return None
        numbers.append(given if given is not None else getattr(named, key))
    return Shape(*numbers)


def problems(model: Vit) -> list[tuple[str, str]]:
    """(dotted key, sentence) for what shows only once the size is known; empty when the model can be built."""
    shape = _resolve(model)
    if shape is None:
        return [("model.size", f"give a size ({', '.join(SIZES)}), or all of model.width, model.depth, model.heads, model.mlp")]
    found = []
    origin = f" of size {model.size}" if model.size and model.width is None else ""
    if shape.width % shape.heads:
        found.append(("model.heads", f"{shape.heads} heads do not divide the width {shape.width}{origin}"))
    if model.pool_heads and shape.width % model.pool_heads:
        found.append(("model.pool_heads", f"{model.pool_heads} heads do not divide the width {shape.width}{origin}"))
    if is_rotary(model) and shape.width % (4 * shape.heads) and not shape.width % shape.heads:
        key = "model.position" if model.position == "rotary" else "model.rope_type"
        found.append((key, f"rotary positions want heads whose width is divisible by 4, got {shape.width // shape.heads}"))
    if model.position == "sincos" and shape.width % 4:
        found.append(("model.width", f"sin-cos positions want a width divisible by 4, got {shape.width}{origin}"))
    if model.image % model.patch:
        found.append(("model.image", f"{model.image} is not divisible by model.patch {model.patch}"))
    return found + _stem_problems(model, shape.width)


def _stem_problems(model: Vit, width: int) -> list[tuple[str, str]]:
    """Of the patch embeddings that halve the image time and again."""
    halvings, kind = model.patch.bit_length() - 1, model.patch_embed
    if kind not in ("conv_stem", "hybrid"):
        return []
    least = 2 if kind == "conv_stem" else 4
    if model.patch != 2**halvings or model.patch < least:
        return [("model.patch", f"{kind} halves the image time and again: it wants a power of 2, {least} at least, got {model.patch}")]
    if kind == "conv_stem" and width % 2 ** (halvings - 1):
        return [("model.width", f"conv_stem doubles its channels {halvings - 1} times: {width} is not divisible by {2 ** (halvings - 1)}")]
    if kind == "hybrid" and model.hybrid_depths is not None and len(model.hybrid_depths) != halvings - 1:
        return [("model.hybrid_depths", f"patch {model.patch} takes {halvings - 1} stages, got {len(model.hybrid_depths)} numbers")]
    return []


def shape_of(model: Vit) -> Shape:
    """Size and explicit overrides -> numbers.  Raises RecipeError with every contradiction among them."""
    found = problems(model)
    if found:
        raise RecipeError("\n".join(f"{key}: {sentence}" for key, sentence in found))
    shape = _resolve(model)
    assert shape is not None        # problems() says so
    return shape


def grid(model: Vit) -> int:
    """Patches on a side of the (square) image."""
    return model.image // model.patch


def num_placed(model: Vit) -> int:
    """Tokens that come before the patches and may have a place in the table of learned positions: class tokens, a distillation token."""
    return (model.class_tokens if has_class_token(model) else 0) + (model.family == "deit")


def has_class_token(model: Vit) -> bool:
    return model.pool in ("token", "token_mean")


def pools_prefix(model: Vit) -> bool:
    """Whether the pooling is over what stands before the patches as well."""
    return model.pool == "attention" if model.pool_include_prefix is None else model.pool_include_prefix


def num_pooled(model: Vit) -> int:
    """Tokens that a mean or attention pooling is over."""
    return num_tokens(model) if pools_prefix(model) else grid(model) ** 2


def is_rotary(model: Vit) -> bool:
    """Whether queries and keys are turned by where their patches stand."""
    return model.position == "rotary" or model.rope_type is not None


def rotary_options(model: Vit) -> dict[str, Any] | None:
    """How models.position.rotary finds the angles; None: nothing is turned, or each block finds its own."""
    return {"kind": model.rope_type or "dinov3", "temperature": model.rope_temperature, "reference": model.rope_grid,
            "offset": model.rope_offset} if is_rotary(model) and model.rope_type != "mixed" else None


def num_positions(model: Vit) -> int:
    """Rows of the table of learned positions: those of class and distillation tokens first, if they have any; registers have none."""
    return (num_placed(model) if model.class_position else 0) + grid(model) ** 2


def num_tokens(model: Vit) -> int:
    """N: the patches, and what stands before them: class tokens where the pooling is `token`, a distillation token, registers."""
    return grid(model) ** 2 + num_placed(model) + model.registers


def num_features(model: Vit, width: int) -> int:
    """Numbers in what the pooling gives the head."""
    return width * {"token": model.class_tokens, "token_mean": 2}.get(model.pool, 1)


def stem_widths(patch: int, width: int) -> list[int]:
    """Channels after each halving of conv_stem: of patch 16 D / 8, D / 4, D / 2, D (Xiao et al. 2021)."""
    halvings = patch.bit_length() - 1
    return [width // 2 ** (halvings - 1 - number) for number in range(halvings)]


def hybrid_depths(model: Vit) -> tuple[int, ...]:
    """Blocks of each stage of hybrid's ResNet; two each where the recipe says nothing."""
    return model.hybrid_depths or (2,) * (model.patch.bit_length() - 2)
