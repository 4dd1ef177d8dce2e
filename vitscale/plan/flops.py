"""How many floating-point operations an image costs.  Exact: equal to torch's FlopCounterMode on the built model."""

from vitscale.plan.sizes import grid, num_tokens, shape_of
from vitscale.recipe.schema import Model


def flops_by_component(model: Model) -> dict[str, int]:
    """FLOPs of one image's forward pass by component; their sum is forward_flops.  Raises RecipeError.

    A multiply-add is 2 FLOPs; matrix products and convolutions count, elementwise work does not (Kaplan et al. 2020, section 2.1).
    What DeiT and timm print as GFLOPs are multiply-adds: half of this.  Attention counts its two products of N x N x D.
    """
    shape = shape_of(model)
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


def forward_flops(model: Model) -> int:
    """FLOPs of one image's forward pass.  Raises RecipeError."""
    return sum(flops_by_component(model).values())


def training_flops_per_image(model: Model) -> int:
    """3 x forward: the backward pass is two products per product of the forward (Kaplan et al. 2020, section 2.1).

    Recomputation is not counted, as model FLOPs utilisation wants it (Chowdhery et al. 2022, PaLM, appendix B).
    """
    return 3 * forward_flops(model)
