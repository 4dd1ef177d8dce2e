"""Models: what maps images to logits.  They know nothing of parallelism, optimizers or launchers."""

from typing import Any, cast

import torch

from vitscale.models import vit
from vitscale.models.attention import Attention, Layout, RelativePositionAttention
from vitscale.models.attention_axial import AxialAttention
from vitscale.models.attention_linear import LinearAttention
from vitscale.models.attention_local import LocalAttention
from vitscale.models.attention_sparse import SparseAttention
from vitscale.models.backbone import Backbone, Wanted
from vitscale.models.convnext import ConvNeXt
from vitscale.models.deit import DistilledVisionTransformer
from vitscale.models.drop_path import DropPath, add_branch
from vitscale.models.init import initial_value, initialise
from vitscale.models.mlp import MLP, GatedMLP
from vitscale.models.patch_embed import OverlappingPatchEmbed, PatchEmbed, PositionalPatchEmbed, resample_kernel
from vitscale.models.patch_embed_adaptive import AdaptivePatchEmbed
from vitscale.models.patch_embed_conv import ConvStemPatchEmbed, HybridPatchEmbed
from vitscale.models.swin import SwinTransformer
from vitscale.models.vit import Block, VisionTransformer
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.fields import code_at
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import Model, Vit

MultiHeadAttention = Attention      # what the field calls these
Mlp = MLP

__all__ = [
    "MLP", "AdaptivePatchEmbed", "Attention", "AxialAttention", "Backbone", "Block", "ConvNeXt", "ConvStemPatchEmbed",
    "DistilledVisionTransformer", "DropPath", "GatedMLP", "HybridPatchEmbed", "Layout", "LinearAttention", "LocalAttention", "Mlp",
    "MultiHeadAttention", "OverlappingPatchEmbed", "PatchEmbed", "PositionalPatchEmbed", "RelativePositionAttention", "SparseAttention",
    "SwinTransformer", "VisionTransformer", "Wanted", "add_branch", "build_model", "create_vit_model", "initial_value", "initialise",
    "parameter_shapes", "resample_kernel",
]


def build_model(model: Model) -> Backbone:
    """The model section of a recipe -> the model, on torch's current default device (`with torch.device("meta")`).

    Its numbers mean something after initialise() or load_state_dict().  Raises RecipeError when the section contradicts itself.
    """
    return cast(Backbone, code_at(model.code.build)(model))


def parameter_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of a section's model, which is not built for it.  Raises RecipeError."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build_model(model).named_parameters()}


def create_vit_model(size: str, seed: int = 0, **options: Any) -> VisionTransformer:
    """A Vision Transformer of a named size with its initial values; `options` are keys of a recipe's model section.

    create_vit_model("base", patch=16, classes=10).  Raises RecipeError, naming every option that is wrong.
    """
    def contradictions(section: Vit) -> list[tuple[str, str]]:
        return [(key.removeprefix("model."), sentence) for key, sentence in model_contradictions(section)]

    model = vit.build(check_section(Vit, {"size": size, **options}, f"create_vit_model({size!r})", contradictions=contradictions))
    initialise(model, seed)
    return model
