"""DeiT: transformers' logits of both heads with the same weights, published size, what training and evaluation give."""

import pytest
import torch
from reference import fuse, pictures, renamed, shaken
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import build_model
from vitscale.plan import count_params, forward_flops
from vitscale.recipe.schema import Deit

transformers = pytest.importorskip("transformers")

SIZE = {"family": "deit", "width": 32, "depth": 3, "heads": 4, "mlp": 48, "patch": 8, "image": 32, "classes": 5}
THEIRS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8, "image_size": 32,
          "num_labels": 5, "layer_norm_eps": 1e-6}
RENAMED = [         # theirs, ours: applied in this order
    ("deit.", ""), ("embeddings.cls_token", "cls_token"), ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"), ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("layers.", "blocks."),
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layernorm", "norm"), ("attention", "attn"), ("o_proj", "proj"),
    ("cls_classifier", "head"), ("distillation_classifier", "head_dist"),
]


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    theirs = shaken(transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**THEIRS)))
    weights = {renamed(name, RENAMED): value for name, value in theirs.state_dict().items()}
    fuse(weights, ("q_proj", "k_proj", "v_proj"), "qkv")
    ours = build_model(Deit(**SIZE)).eval()
    ours.load_state_dict(weights, strict=True)
    return ours, theirs


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 40)])
def test_both_heads_equal_transformers(height, width):
    ours, theirs = pair()
    with torch.no_grad():
        expected = theirs(pictures(height, width), interpolate_pos_encoding=True)
        assert (expected.cls_logits - expected.distillation_logits).std() > 0.1
        torch.testing.assert_close(ours(pictures(height, width)), expected.logits, rtol=0, atol=1e-5)
        by_label, by_teacher = ours.train()(pictures(height, width))
        torch.testing.assert_close(by_label, expected.cls_logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_teacher, expected.distillation_logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "count"), [("tiny", 5_910_800), ("small", 22_436_432), ("base", 87_338_192)])
def test_published_sizes_and_flops(size, count):
    """Parameters of the distilled models that facebookresearch/deit publishes: 5.9, 22.4 and 87.3 million."""
    section = Deit(family="deit", size=size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(section)
        model(torch.empty(2, 3, 224, 224))
    assert count_params(section) == sum(p.numel() for p in model.parameters()) == count
    assert 2 * forward_flops(section) == counter.get_total_flops()
