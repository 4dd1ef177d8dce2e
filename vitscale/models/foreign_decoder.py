"""The decoder that a masked autoencoder of transformers' keeps beside its encoder, for who goes on with its pretraining."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.errors import RecipeError
from vitscale.models.mae import MaskedAutoencoder
from vitscale.models.names import PRETRAINING
from vitscale.models.position import sincos
from vitscale.recipe.objectives import Mae, MaeDecoder
from vitscale.recipe.schema import Model, Vit
from vitscale.shapes.vit import grid


def pixel_decoder(config: Mapping[str, Any], section: Model, theirs: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(name -> shape of our decoder's parameters that theirs are, none where they are not; what is to be said of that)."""
    if config.get("model_type") != "vit_mae" or not isinstance(section, Vit) or not any(name.startswith("decoder.") for name in theirs):
        return {}, []
    width, depth, heads, hidden = (config.get(f"decoder_{key}", default) for key, default in (
        ("hidden_size", 512), ("num_hidden_layers", 8), ("num_attention_heads", 16), ("intermediate_size", 2048)))
    if hidden != 4 * width:
        return {}, [f"its decoder is left behind: its MLPs are {hidden} wide, not 4 times {width}"]
    table = theirs.get("decoder.decoder_pos_embed")
    if table is not None and not torch.allclose(table[:, 1:].float(), sincos((grid(section),) * 2, width, "cpu"), atol=1e-4):
        return {}, ["its decoder is left behind: its positions are not the sines and cosines that are fixed here"]
    try:
        with torch.device("meta"):
            whole = MaskedAutoencoder(section.model_copy(update={"classes": 0}), Mae(name="mae", decoder=MaeDecoder(
                width=width, depth=depth, heads=heads)))
    except RecipeError as error:
        return {}, [f"its decoder is left behind: {error}"]
    found = {name: tuple(value.shape) for name, value in whole.named_parameters() if name.startswith(PRETRAINING)}
    return found, [f"its decoder is there for objective.name mae: objective.decoder.width {width}, depth {depth}, heads {heads}"]
