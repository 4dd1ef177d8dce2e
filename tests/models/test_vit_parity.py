"""The same logits as transformers' independent implementations with the same weights."""

import pytest
import torch
from torch import Tensor

from vitscale.models.vit import VisionTransformer
from vitscale.recipe import Vit

transformers = pytest.importorskip("transformers")

SIZE = {"width": 32, "depth": 3, "heads": 4, "mlp": 48, "patch": 8, "image": 32}
THEIRS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 32, "layer_norm_eps": 1e-3}

RENAMED = [         # theirs, ours: applied in this order
    ("vit.", ""), ("embeddings.cls_token", "cls_token"), ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.position_embedding.weight", "pos_embed"), ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.patch_embedding", "patch_embed.proj"), ("encoder.layers.", "blocks."), ("encoder.layer.", "blocks."),
    ("layers.", "blocks."), ("head.probe", "attn_pool.latent"), ("head.attention.out_proj", "attn_pool.proj"),
    ("head.layernorm", "attn_pool.norm"), ("head.mlp", "attn_pool.mlp"), ("head.attention.in_proj_", "attn_pool.in_proj."),
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
    ("post_layernorm", "norm"), ("layernorm", "norm"), ("self_attn", "attn"), ("attention", "attn"), ("o_proj", "proj"),
    ("out_proj", "proj"), ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"), ("classifier", "head"),
]


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, with queries, keys and values fused."""
    ours = {}
    for key, value in theirs.items():
        for old, new in RENAMED:
            key = key.replace(old, new)
        ours[key] = value[None] if key == "pos_embed" and value.ndim == 2 else value
    for key in [key for key in ours if ".attn.q_proj." in key]:
        ours[key.replace("q_proj", "qkv")] = torch.cat([ours.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"])
    for last in ("weight", "bias"):
        if f"attn_pool.in_proj.{last}" in ours:
            fused = ours.pop(f"attn_pool.in_proj.{last}")
            ours[f"attn_pool.q.{last}"], ours[f"attn_pool.kv.{last}"] = fused[:32], fused[32:]
    ours.pop("embeddings.mask_token", None)
    return ours


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random and large enough to matter: zeros and ones would hide a swap."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def pictures(height: int, width: int) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40), (24, 64), (16, 16)])
def test_token_pooling_equals_vit_at_any_image_size(qkv_bias, height, width):
    config = transformers.ViTConfig(**THEIRS, intermediate_size=48, num_labels=5, qkv_bias=qkv_bias)
    theirs = shaken(transformers.ViTForImageClassification(config))
    ours = VisionTransformer(Vit(**SIZE, classes=5, qkv_bias=qkv_bias), eps=1e-3).eval()
    ours.load_state_dict(renamed(theirs.state_dict()), strict=True)
    images = pictures(height, width)
    with torch.no_grad():
        expected = theirs(images, interpolate_pos_encoding=True).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)


def test_attention_pooling_equals_siglip():
    config = transformers.SiglipVisionConfig(**THEIRS, intermediate_size=48, hidden_act="gelu")
    theirs = shaken(transformers.SiglipVisionModel(config))
    ours = VisionTransformer(Vit(**SIZE, classes=0, pool="attention"), eps=1e-3).eval()
    ours.load_state_dict(renamed(theirs.state_dict()), strict=True)
    with torch.no_grad():
        expected = theirs(pictures(32, 32)).pooler_output
        torch.testing.assert_close(ours(pictures(32, 32)), expected, rtol=0, atol=1e-5)


def test_layer_scale_equals_dinov2():
    config = transformers.Dinov2Config(**THEIRS, mlp_ratio=2)
    theirs = shaken(transformers.Dinov2Model(config))
    ours = VisionTransformer(Vit(**{**SIZE, "mlp": 64}, classes=0, layer_scale=0.1), eps=1e-3).eval()
    ours.load_state_dict(renamed(theirs.state_dict()), strict=True)
    with torch.no_grad():
        expected = theirs(pictures(32, 32)).last_hidden_state
        torch.testing.assert_close(ours.forward_features(pictures(32, 32))["norm"], expected, rtol=0, atol=1e-5)
