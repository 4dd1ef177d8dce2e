"""How many parameters a model has, component by component.  Exact: equal to the built model's."""

from vitscale.plan.sizes import num_tokens, shape_of
from vitscale.recipe.schema import Model


def params_by_component(model: Model) -> dict[str, int]:
    """Counts by component; their sum is count_params.  A sin-cos position table is a buffer, hence 0.  Raises RecipeError.

    Biases everywhere (Dosovitskiy et al. 2021, whose code has them), but of queries, keys and values only with `qkv_bias`.
    """
    shape = shape_of(model)
    width, mlp = shape.width, shape.mlp
    one_mlp = (width * mlp + mlp) + (mlp * width + width)
    norm = 2 * width                                            # scale and shift
    square = width * width + width                              # a D x D layer with its bias
    return {
        "patch_embed": model.channels * model.patch**2 * width + width,
        "position": num_tokens(model) * width if model.position == "learned" else 0,
        "cls_token": width if model.pool == "token" else 0,
        "attention": shape.depth * (3 * width * width + (3 * width if model.qkv_bias else 0) + square),
        "mlp": shape.depth * one_mlp,
        "norms": shape.depth * 2 * norm + norm,
        "layer_scale": shape.depth * 2 * width if model.layer_scale is not None else 0,
        # MAP head (Zhai et al. 2022, section 3.2): probe; queries, keys, values, projection; norm; MLP
        "pool": width + 4 * square + norm + one_mlp if model.pool == "attention" else 0,
        "head": width * model.classes + model.classes,
    }


def count_params(model: Model) -> int:
    """The number of trainable parameters.  Raises RecipeError."""
    return sum(params_by_component(model).values())
