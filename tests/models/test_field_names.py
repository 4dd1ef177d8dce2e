"""The names by which the field knows these parts, and the model that one line makes."""

import pytest
import torch

from vitscale import models
from vitscale.errors import RecipeError

NAMES = (
    "VisionTransformer", "Block", "Attention", "MultiHeadAttention", "RelativePositionAttention", "LocalAttention", "AxialAttention",
    "SparseAttention", "LinearAttention", "MLP", "Mlp", "DropPath", "PatchEmbed", "OverlappingPatchEmbed", "HybridPatchEmbed",
    "PositionalPatchEmbed", "AdaptivePatchEmbed",
)


def test_every_name_is_a_module():
    assert all(issubclass(getattr(models, name), torch.nn.Module) for name in NAMES)
    assert set(NAMES) < set(models.__all__)
    assert all(hasattr(models, name) for name in models.__all__)


def test_a_model_in_one_line():
    one, same, other = (models.create_vit_model("tiny", seed=seed, patch=16, image=32, depth=1, classes=3, attention="axial")
                        for seed in (0, 0, 1))
    assert isinstance(one, models.VisionTransformer)
    assert isinstance(one.blocks[0].attn, models.AxialAttention)
    assert one.head.out_features == 3
    weight = "blocks.0.attn.qkv.weight"
    assert torch.equal(one.get_parameter(weight), same.get_parameter(weight))
    assert not torch.equal(one.get_parameter(weight), other.get_parameter(weight))
    assert one(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(("size", "options", "message"), [
    ("colossal", {}, "size .*'colossal'"),
    ("tiny", {"patchsize": 4}, "patchsize  is no key"),
    ("tiny", {"image": 225}, "image  225 is not divisible by model.patch 16"),
    ("tiny", {"heads": 5}, "model.heads: 5 heads do not divide the width 192"),
])
def test_a_wrong_option_is_named(size, options, message):
    with pytest.raises(RecipeError, match=message):
        models.create_vit_model(size, **options)
