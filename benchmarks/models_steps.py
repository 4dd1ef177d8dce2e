"""A contender of models.py: one training step at a time of our model or transformers', the same optimizer for both."""

import resource
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import serve

CLASSES = 1000
RATE, GROUP = 0.5, 8        # of stochastic depth
WAYS = {"masked": None, "left out": GROUP}
MICRO: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "mlp": 64, "patch": 16, "image": 224}


def ours(name: str) -> torch.nn.Module:
    from vitscale.models import build_model, initialise
    from vitscale.recipe import Vit
    from vitscale.recipe.schema import ConvNext, Swin

    section = {
        "ViT-S/16": Vit(size="small"), "Swin-T": Swin(family="swin", size="tiny"), "ConvNeXt-T": ConvNext(family="convnext", size="tiny"),
        "ViT-micro": Vit(**MICRO),
        **{f"{size}, {way}": Vit(**section, drop_path=RATE, drop_path_schedule="constant", drop_path_group=group)
           for size, section in (("ViT-S/16", {"size": "small"}), ("ViT-micro", MICRO)) for way, group in WAYS.items()},
    }[name]
    model = build_model(section)
    initialise(model, 0)
    return model


def theirs(name: str) -> torch.nn.Module:
    """The same sizes; scaled-dot-product attention where transformers has it."""
    import transformers as tf

    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    micro = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa", "num_labels": CLASSES}
    if name == "Swin-T":
        return _with_sdpa(tf.SwinForImageClassification, tf.SwinConfig(num_labels=CLASSES, drop_path_rate=0.0))
    if name == "ConvNeXt-T":
        return tf.ConvNextForImageClassification(tf.ConvNextConfig(num_labels=CLASSES, drop_path_rate=0.0))
    return tf.ViTForImageClassification(tf.ViTConfig(**(small if name == "ViT-S/16" else micro), **none))


def _with_sdpa(kind: Any, config: Any) -> torch.nn.Module:
    try:
        return kind._from_config(config, attn_implementation="sdpa")
    except ValueError:      # not every version has it for every model
        return kind(config)


_made: dict[tuple[str, str], tuple[torch.nn.Module, torch.optim.Optimizer]] = {}


def step(who: str, model: str, batch: int) -> Mapping[str, Any]:
    """Forward, backward, AdamW on `batch` random images of 224 pixels; with stochastic depth if the model has it."""
    if (who, model) not in _made:
        built = {"ours": ours, "theirs": theirs}[who](model).train()
        _made[who, model] = built, torch.optim.AdamW(built.parameters(), lr=1e-3, fused=True)
    net, optimizer = _made[who, model]
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(batch, 3, 224, 224, generator=generator), torch.randint(CLASSES, (batch,), generator=generator)
    output = net(images, _kept(net, batch)) if model.endswith(tuple(WAYS)) else net(images)
    loss = F.cross_entropy(output if isinstance(output, torch.Tensor) else output.logits, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"samples": batch, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _kept(net: Any, batch: int) -> torch.Tensor:
    from vitscale.data.drop_path import keep_of_groups

    return torch.from_numpy(keep_of_groups(net.drop_rates, 0, 0, np.arange(batch), GROUP, batch))


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve({"step": step})
