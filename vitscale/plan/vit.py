"""A Vision Transformer taken apart.  Parameters are those of the built model, FLOPs those that torch counts, exactly."""

from vitscale.plan.anatomy import Anatomy, Unit
from vitscale.plan.sizes import Shape, grid, num_tokens, shape_of
from vitscale.recipe.schema import Vit


def anatomy(model: Vit) -> Anatomy:
    """Raises RecipeError when the section contradicts itself."""
    shape = shape_of(model)
    tokens = num_tokens(model)
    return Anatomy(
        params=_params(model, shape), flops=_flops(model, shape), units=(_unit(model, shape),) * shape.depth, normed=tokens * shape.width,
        pooled=3 * tokens * shape.width if model.pool == "attention" else 0,        # keys and values, and what they came from
        mask_bytes=tokens * shape.width if model.dropout else 0,
    )


def _params(model: Vit, shape: Shape) -> dict[str, int]:
    """A sin-cos position table is a buffer, hence 0.

    Biases everywhere (Dosovitskiy et al. 2021, whose code has them), but of queries, keys and values only with `qkv_bias`.
    """
    width, norm = shape.width, 2 * shape.width                  # a norm's scale and shift
    one_mlp, square = _mlp_params(shape), width * width + width     # a D x D layer with its bias
    return {
        "patch_embed": model.channels * model.patch**2 * width + width,
        "position": num_tokens(model) * width if model.position == "learned" else 0,
        "cls_token": width if model.pool == "token" else 0,
        "attention": shape.depth * _attention_params(model, shape),
        "mlp": shape.depth * one_mlp,
        "norms": shape.depth * 2 * norm + norm,
        "layer_scale": shape.depth * 2 * width if model.layer_scale is not None else 0,
        # MAP head (Zhai et al. 2022, section 3.2): probe; queries, keys, values, projection; norm; MLP
        "pool": width + 4 * square + norm + one_mlp if model.pool == "attention" else 0,
        "head": width * model.classes + model.classes,
    }


def _attention_params(model: Vit, shape: Shape) -> int:
    width = shape.width
    return 3 * width * width + (3 * width if model.qkv_bias else 0) + width * width + width


def _mlp_params(shape: Shape) -> int:
    return (shape.width * shape.mlp + shape.mlp) + (shape.mlp * shape.width + shape.width)


def _flops(model: Vit, shape: Shape) -> dict[str, int]:
    """Attention counts its two products of N x N x D."""
    tokens, width, mlp = num_tokens(model), shape.width, shape.mlp
    square = 2 * width * width                                  # one token through a D x D layer
    pool = 0
    if model.pool == "attention":                               # one query (the probe) per image over all tokens
        pool = square + tokens * 2 * square + 2 * (2 * tokens * width) + square + 2 * (2 * width * mlp)
    return {
        "patch_embed": 2 * grid(model) ** 2 * model.channels * model.patch**2 * width,
        "attention_linear": shape.depth * tokens * 4 * square,
        "attention_product": shape.depth * 2 * (2 * tokens * tokens * width),
        "mlp": shape.depth * tokens * 2 * (2 * width * mlp),
        "pool": pool,
        "head": 2 * width * model.classes,
    }


def _unit(model: Vit, shape: Shape) -> Unit:
    """What one block keeps for its backward pass.

    Korthikanti et al. 2022 (Reducing activation recomputation in large transformer models, section 4.1) count per token and layer
    34 D + 5 N H bytes in 16 bits.  Flash attention never stores the N x N terms but one fp32 log-sum-exp per head; dropout masks
    (1 byte each, two of D) are there only with dropout; the MLP is M wide, not 4 D.  In numbers per token that leaves norm inputs
    2 D, qkv input D, q, k, v 3 D, attention output D, MLP input D, GELU input and output 2 M, and in fp32 H.  LayerScale keeps its two
    inputs, 2 D.
    """
    tokens, width, mlp = num_tokens(model), shape.width, shape.mlp
    scaled = model.layer_scale is not None
    return Unit(
        params=_attention_params(model, shape) + _mlp_params(shape) + 4 * width + (2 * width if scaled else 0),
        stream=tokens * width,
        kept=tokens * (8 * width + 2 * mlp + (2 * width if scaled else 0)),
        normed=tokens * 2 * width,
        kept_fp32=tokens * shape.heads,
        outputs=tokens * (7 * width + mlp),                 # input; qkv 3, attention, proj, fc2; fc1
        mask_bytes=tokens * 2 * width if model.dropout else 0,
        in_flight=tokens * 2 * mlp,                         # inside the MLP
    )
