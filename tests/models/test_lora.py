"""Adapters reach the outputs of every backbone: what is to learn has a gradient."""

import pytest
import torch
from backbones import BACKBONES

from vitscale.models import Backbone, build_model, initialise
from vitscale.models.lora import with_adapters
from vitscale.recipe.schema import Lora


@pytest.mark.parametrize("name", [name for name, (_, objective) in BACKBONES.items() if objective.name == "classification"])
def test_every_adapter_of_every_backbone_has_a_gradient(name: str) -> None:
    section, _ = BACKBONES[name]
    plain = build_model(section)
    linear = [path for path, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [end for end in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") if any(path.endswith("." + end) for path in linear)]

    def build() -> Backbone:
        model = build_model(section)
        initialise(model, 0)
        return model

    model = with_adapters(build, Lora(rank=2, targets=tuple(targets)))
    model(torch.randn(2, section.channels, section.image, section.image)).square().sum().backward()
    assert targets
    assert [path for path, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None] == []
