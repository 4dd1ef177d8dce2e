"""The model sections that masked image modelling trains: an encoder, and MAE's decoder."""

from vitscale.recipe.objectives import Mae
from vitscale.recipe.schema import Vit
from vitscale.shapes.vit import has_class_token


def encoder_section(model: Vit) -> Vit:
    """The model without what comes after its last norm; a class token stays where the pooling is `token`."""
    pool = "token" if has_class_token(model) else "mean"
    return model.model_copy(update={"classes": 0, "pool": pool, "pool_include_prefix": None, "final_norm": True, "pool_norm": False,
                                    "head_hidden": None, "head_dropout": 0.0})


def decoder_section(model: Vit, objective: Mae) -> Vit:
    """The decoder as if it were a model of its own: plain blocks, fixed positions."""
    width, depth, heads = objective.decoder.width, objective.decoder.depth, objective.decoder.heads
    return Vit(width=width, depth=depth, heads=heads, mlp=4 * width, patch=model.patch, image=model.image, channels=model.channels,
               classes=0, pool="mean", position="sincos")


def num_pixels(model: Vit) -> int:
    """Numbers in a patch."""
    return model.patch**2 * model.channels
