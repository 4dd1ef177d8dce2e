"""A Vision Transformer taken apart.  Parameters are those of the built model, FLOPs those that torch counts, exactly."""

from vitscale.plan import patch_embed
from vitscale.plan.anatomy import KEPT_OF_MLP, Anatomy, Unit
from vitscale.plan.attention import mixing
from vitscale.recipe.schema import Vit
from vitscale.shapes.drop_path import drop_rates, kept_of_group
from vitscale.shapes.vit import Shape, grid, is_rotary, num_features, num_placed, num_pooled, num_positions, num_tokens, shape_of


def anatomy(model: Vit) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    shape = shape_of(model)
    tokens = num_tokens(model)
    return Anatomy(
        params=_params(model, shape), flops=_flops(model, shape), moved=_moved(model, shape),
        units=(unit_of(model, shape, tokens),) * shape.depth, normed=tokens * shape.width * (model.final_norm + model.pre_norm),
        outputs=model.classes,
        pooled=3 * num_pooled(model) * shape.width if model.pool == "attention" else 0,        # keys and values, and what they came from
        one_row=(num_placed(model) + model.registers + (model.pool == "attention")) * shape.width
        + (num_positions(model) * shape.width if model.position == "learned" else 0),
        stem=patch_embed.kept(model, shape.width), mask_bytes=tokens * shape.width if model.dropout else 0,
    )


def bias_rows(model: Vit) -> int:
    """Rows of the table of relative positions: offsets between patches; to, from and among the tokens before them (BEiT)."""
    return (2 * grid(model) - 1) ** 2 + (3 if num_placed(model) + model.registers else 0)


def _params(model: Vit, shape: Shape) -> dict[str, int]:
    """A sin-cos position table is a buffer, hence 0.

    Biases everywhere (Dosovitskiy et al. 2021, whose code has them), but of queries, keys and values only with `qkv_bias`.
    """
    width, norm = shape.width, 2 * shape.width                  # a norm's scale and shift
    square, heads = width * width + width, 2 if model.family == "deit" else 1   # a D x D layer with its bias; DeiT's second classifier
    features = num_features(model, width)
    hidden = model.head_hidden
    last = 2 * features if model.pool_norm else norm if model.final_norm else 0
    wide = model.pool_mlp or shape.mlp
    pool_mlp = (width * wide + wide) + (wide * width + width)
    return {
        "patch_embed": patch_embed.params(model, width),
        "position": num_positions(model) * width if model.position == "learned" else 0,
        "prefix_tokens": (num_placed(model) + model.registers) * width,
        "attention": shape.depth * _attention_params(model, shape),
        "mlp": shape.depth * _mlp_params(model, shape),
        "norms": shape.depth * (1 if model.parallel else 2) * norm + last + (norm if model.pre_norm else 0),
        "layer_scale": shape.depth * 2 * width if model.layer_scale is not None else 0,
        # MAP head (Zhai et al. 2022, section 3.2): probe; queries, keys, values, projection; norm; MLP
        "pool": width + 4 * square + norm + pool_mlp if model.pool == "attention" else 0,
        "head": heads * ((hidden or features) * model.classes + model.classes) + (hidden * features + hidden if hidden else 0),
    }


def _attention_params(model: Vit, shape: Shape) -> int:
    width = shape.width
    found = 3 * width * width + ((3 if model.key_bias else 2) * width if model.qkv_bias else 0) + width * width + width
    if model.scale_attn_norm:
        found += 2 * width
    if model.qk_norm:
        found += 2 * 2 * width // shape.heads
    if model.position == "relative":
        hidden = model.relative_mlp
        found += bias_rows(model) * shape.heads if hidden is None else 3 * hidden + (hidden + 1) * shape.heads
    if model.rope_type == "mixed":
        found += width
    return found


def _mlp_params(model: Vit, shape: Shape) -> int:
    first = shape.mlp * (2 if model.gated else 1)
    return (shape.width * first + first) + (shape.mlp * shape.width + shape.width) + (2 * shape.mlp if model.scale_mlp_norm else 0)


def _flops(model: Vit, shape: Shape) -> dict[str, int]:
    tokens, width, mlp = num_tokens(model), shape.width, shape.mlp
    square = 2 * width * width                                  # one token through a D x D layer
    features, hidden = num_features(model, width), model.head_hidden
    pool = 0
    if model.pool == "attention":                               # one query (the probe) per image over all tokens
        seen = num_pooled(model)
        pool = square + seen * 2 * square + 2 * (2 * seen * width) + square + 2 * (2 * width * (model.pool_mlp or mlp))
    heads = 2 if model.family == "deit" else 1
    return {
        "patch_embed": patch_embed.flops(model, width),
        **block_flops(model, shape, tokens),
        # made once for a batch, however large; here it is taken for one image
        **({"bias_network": shape.depth * (2 * grid(model) - 1) ** 2 * 2 * model.relative_mlp * (2 + shape.heads)}
           if model.relative_mlp else {}),
        "pool": pool,
        "head": heads * 2 * (hidden or features) * model.classes + (2 * features * hidden if hidden else 0),
    }


def block_flops(model: Vit, shape: Shape, tokens: int) -> dict[str, int]:
    """Of all blocks, which `tokens` go through.  Full attention counts its two products of N x N x D."""
    width, mlp = shape.width, shape.mlp
    return {name: _of_all_blocks(model, shape, each) for name, each in {
        "attention_linear": tokens * 4 * (2 * width * width),
        "attention_product": mixing(model, shape, tokens).flops,
        "mlp": tokens * (3 if model.gated else 2) * (2 * width * mlp),
    }.items()}


def _of_all_blocks(model: Vit, shape: Shape, each: int) -> int:
    """What takes `each` for an image in a block takes in all of them, on average over the images in training: branches that
    drop_path_group leaves out are not computed, those that stochastic depth masks are."""
    if model.drop_path_group is None:
        return shape.depth * each
    rates = drop_rates(shape.depth, model.drop_path, model.drop_path_schedule)[::2]
    return sum(kept_of_group(rate, model.drop_path_group) for rate in rates) * each // model.drop_path_group


def _moved(model: Vit, shape: Shape) -> dict[str, int]:
    tokens, width = num_tokens(model), shape.width
    found = block_moved(model, shape, tokens)
    found["elementwise"] += (4 + 2 * (model.final_norm + model.pre_norm)) * tokens * width      # positions; the last norm, and a first
    return found | {
        "patch_embed": model.channels * model.image**2 + tokens * width + 2 * patch_embed.kept(model, width),
        "pool": 4 * tokens * width if model.pool == "attention" else tokens * width,
        "head": num_features(model, width) + model.classes,
    }


def block_moved(model: Vit, shape: Shape, tokens: int) -> dict[str, int]:
    """Of all blocks: a layer reads its input and writes its output, a norm and GELU too, an addition reads two and writes one."""
    width, first = shape.width, shape.mlp * (2 if model.gated else 1)
    norms = 1 if model.parallel else 2
    pointwise = (2 * norms + 6 + (4 if model.layer_scale is not None else 0)) * width + first + shape.mlp
    if model.qk_norm or is_rotary(model):
        pointwise += 4 * width
    pointwise += (2 * width if model.scale_attn_norm else 0) + (2 * shape.mlp if model.scale_mlp_norm else 0)
    return {name: _of_all_blocks(model, shape, each) for name, each in {
        "attention_linear": tokens * (4 + 2) * width,
        "attention_product": mixing(model, shape, tokens).kept,
        "mlp": tokens * (2 * width + first + shape.mlp),
        "elementwise": tokens * pointwise,
    }.items()}


def unit_of(model: Vit, shape: Shape, tokens: int) -> Unit:
    """What one block keeps for its backward pass.

    Korthikanti et al. 2022 (Reducing activation recomputation in large transformer models, section 4.1) count per token and layer
    34 D + 5 N H bytes in 16 bits.  Flash attention never stores the N x N terms but one fp32 log-sum-exp per head; dropout masks
    (1 byte each, two of D) are there only with dropout; the MLP is M wide, not 4 D.  In numbers per token that leaves norm inputs
    2 D, qkv input D, q, k, v 3 D, attention output D, MLP input D, GELU input and output 2 M, and in fp32 H.  LayerScale keeps its two
    inputs, 2 D; normed queries and keys are 2 D more; a gate keeps both its factors, silu's output and the product, 4 M; a parallel
    block has one norm, whose output both branches share; norms after the branches keep what these gave in place of their own outputs.
    """
    width, mlp = shape.width, shape.mlp
    scaled, first = model.layer_scale is not None, 2 * mlp if model.gated else mlp
    norms = 1 if model.parallel else 2
    between = 3 * tokens * width            # queries, keys, values as the layer gave them
    inner = (4 if model.gated else KEPT_OF_MLP.get(model.hidden_act, 2)) * mlp
    scaled_norms = (width if model.scale_attn_norm else 0) + (mlp if model.scale_mlp_norm else 0)
    attention = mixing(model, shape, tokens)
    kept = 2 * norms * width + inner + (2 * width if scaled else 0) + (2 * width if model.qk_norm else 0) + scaled_norms
    return Unit(
        params=_attention_params(model, shape) + _mlp_params(model, shape) + 2 * norms * width + (2 * width if scaled else 0),
        stream=tokens * width,
        kept=tokens * kept + attention.kept,
        normed=tokens * (norms * width + scaled_norms),
        kept_fp32=attention.kept_fp32,
        outputs=tokens * (6 * width + first) + attention.outputs,       # input; qkv 3, proj, fc2; fc1
        spare=0 if scaled or model.post_norm else tokens * 2 * width,          # proj, fc2: added to the stream, which asks for neither
        attention=attention.kept,
        attention_outputs=between + attention.outputs,
        mask_bytes=tokens * 2 * width if model.dropout else 0,
        in_flight=tokens * ((3 if model.gated else 1) * mlp + width),       # inside the MLP, and of the stream
    )
