"""The same logits as transformers' independent implementations with the same weights."""

from collections.abc import Callable

import pytest
import torch
from reference import fuse, pictures, renamed, shaken
from torch import Tensor

from vitscale.models.vit import VisionTransformer
from vitscale.recipe import Vit

transformers = pytest.importorskip("transformers")

SIZE = {"width": 32, "depth": 3, "heads": 4, "mlp": 48, "patch": 8, "image": 32}
THEIRS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 32, "layer_norm_eps": 1e-3}

RENAMED = [         # theirs, ours: applied in this order
    ("vit.", ""), ("embeddings.cls_token", "cls_token"), ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.register_tokens", "reg_token"), ("embeddings.patch_embeddings.weight", "patch_embed.proj.weight"),
    ("embeddings.patch_embeddings.bias", "patch_embed.proj.bias"),
    ("embeddings.position_embedding.weight", "pos_embed"), ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.patch_embedding", "patch_embed.proj"), ("encoder.layers.", "blocks."), ("encoder.layer.", "blocks."),
    ("model.layer.", "blocks."), ("layers.", "blocks."), ("head.probe", "attn_pool.latent"), ("head.attention.out_proj", "attn_pool.proj"),
    ("head.layernorm", "attn_pool.norm"), ("head.mlp", "attn_pool.mlp"), ("head.attention.in_proj_", "attn_pool.in_proj."),
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layer_norm1", "norm1"), ("layer_norm2", "norm2"),
    ("post_layernorm", "norm"), ("layernorm", "norm"), ("self_attn", "attn"), ("attention", "attn"), ("o_proj", "proj"),
    ("out_proj", "proj"), ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"), ("lambda_1", "ls1.gamma"),
    ("lambda_2", "ls2.gamma"), ("relative_position_bias.relative", "attn.relative"), ("classifier", "head"),
]


def ours_from(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, with queries, keys and values fused, and gate and value of a gated MLP."""
    ours = {}
    for theirs_name, value in theirs.items():
        name = renamed(theirs_name, RENAMED)
        ours[name] = value[None] if name == "pos_embed" and value.ndim == 2 else value
    fuse(ours, ("q_proj", "k_proj", "v_proj"), "qkv")
    if any("gate_proj" in name for name in ours):
        fuse(ours, ("gate_proj", "up_proj"), "fc1")
    ours = {name.replace("up_proj", "fc1").replace("down_proj", "fc2"): value for name, value in ours.items()}
    for last in ("weight", "bias"):
        if f"attn_pool.in_proj.{last}" in ours:
            fused = ours.pop(f"attn_pool.in_proj.{last}")
            ours[f"attn_pool.q.{last}"], ours[f"attn_pool.kv.{last}"] = fused[:32], fused[32:]
    ours.pop("embeddings.mask_token", None)
    return ours


Output = Callable[[Tensor], Tensor]


def pair(theirs: torch.nn.Module, section: Vit, weights: dict[str, Tensor] | None = None) -> tuple[VisionTransformer, torch.nn.Module]:
    """Ours with the weights of theirs, shaken."""
    ours = VisionTransformer(section.model_copy(update={"norm_eps": 1e-3})).eval()
    ours.load_state_dict(ours_from(theirs.state_dict() if weights is None else weights), strict=True)
    return ours, theirs


def token(qkv_bias: bool = True) -> tuple[Output, Output]:
    config = transformers.ViTConfig(**THEIRS, intermediate_size=48, num_labels=5, qkv_bias=qkv_bias)
    ours, theirs = pair(shaken(transformers.ViTForImageClassification(config)), Vit(**SIZE, classes=5, qkv_bias=qkv_bias))
    return ours, lambda images: theirs(images, interpolate_pos_encoding=True).logits


def attention_pooling() -> tuple[Output, Output]:
    config = transformers.SiglipVisionConfig(**THEIRS, intermediate_size=48, hidden_act="gelu")
    ours, theirs = pair(shaken(transformers.SiglipVisionModel(config)), Vit(**SIZE, classes=0, pool="attention"))
    return ours, lambda images: theirs(images).pooler_output


def _last_tokens(ours: VisionTransformer, theirs: torch.nn.Module) -> tuple[Output, Output]:
    return lambda images: ours.forward_features(images)["norm"], lambda images: theirs(images).last_hidden_state


def layer_scale() -> tuple[Output, Output]:
    theirs = shaken(transformers.Dinov2Model(transformers.Dinov2Config(**THEIRS, mlp_ratio=2)))
    return _last_tokens(*pair(theirs, Vit(**{**SIZE, "mlp": 64}, classes=0, layer_scale=0.1)))


def registers_and_gate() -> tuple[Output, Output]:
    config = transformers.Dinov2WithRegistersConfig(**THEIRS, mlp_ratio=2, num_register_tokens=3, use_swiglu_ffn=True)
    theirs = shaken(transformers.Dinov2WithRegistersModel(config))
    hidden = theirs.encoder.layer[0].mlp.down_proj.in_features
    return _last_tokens(*pair(theirs, Vit(**{**SIZE, "mlp": hidden}, classes=0, layer_scale=0.1, registers=3, gated=True)))


def rotary() -> tuple[Output, Output]:
    config = transformers.DINOv3ViTConfig(**THEIRS, intermediate_size=48, num_register_tokens=2, key_bias=True)
    theirs = shaken(transformers.DINOv3ViTModel(config))
    return _last_tokens(*pair(theirs, Vit(**SIZE, classes=0, layer_scale=0.1, registers=2, position="rotary")))


def relative() -> tuple[Output, Output]:
    """BEiT pools the patches' mean and norms it; its blocks have no norm after the last."""
    config = transformers.BeitConfig(**THEIRS, intermediate_size=48, use_relative_position_bias=True, num_labels=5)
    theirs = shaken(transformers.BeitForImageClassification(config))
    weights = {name.removeprefix("beit."): value for name, value in theirs.state_dict().items()}
    weights["embeddings.register_tokens"] = weights.pop("embeddings.cls_token")         # it has no position and is not pooled: a register
    weights["fc_norm.weight"], weights["fc_norm.bias"] = weights.pop("pooler.layernorm.weight"), weights.pop("pooler.layernorm.bias")
    section = Vit(**SIZE, classes=5, layer_scale=0.1, position="relative", pool="mean", pool_norm=True, registers=1)
    ours, _ = pair(theirs, section, weights)
    return ours, lambda images: theirs(images).logits


@torch.no_grad()
def assert_equal(outputs: tuple[Output, Output], height: int = 32, width: int = 32) -> None:
    ours, theirs = outputs
    expected = theirs(pictures(height, width))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(pictures(height, width)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40), (24, 64), (16, 16)])
def test_token_pooling_equals_vit_at_any_image_size(qkv_bias, height, width):
    assert_equal(token(qkv_bias), height, width)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 24)])
def test_rotary_positions_equal_dinov3(height, width):
    assert_equal(rotary(), height, width)


@pytest.mark.parametrize("outputs", [attention_pooling, layer_scale, registers_and_gate, relative])
def test_other_options_equal_siglip_dinov2_and_beit(outputs):
    assert_equal(outputs())
