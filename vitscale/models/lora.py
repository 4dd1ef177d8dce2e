"""Low-rank adapters beside layers that stay as they are (Hu et al. 2022, LoRA): put in by peft, taken out again by adding them up."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from vitscale.errors import RecipeError
from vitscale.models.backbone import Backbone
from vitscale.models.names import HEAD
from vitscale.recipe.schema import Lora

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."      # as peft names them


def with_adapters(build: Callable[[], Backbone], lora: Lora) -> Backbone:
    """The model that `build` gives, with adapters at the layers whose names end as lora.targets; these and the head alone learn.

    Raises RecipeError where no layer's name does, or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise RecipeError("lora: adapters are peft's; install it with `pip install 'vitscale[lora]'`") from None
    model = build()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        if not any(name == target or name.endswith("." + target) for name in linear):
            ends = sorted({".".join(name.split(".")[-2:]) for name in linear if not name.startswith(HEAD)})
            raise RecipeError(f"lora.targets: no linear layer's name ends in {target!r}; they end in {', '.join(ends)}")
    alpha: Any = lora.alpha         # it says int, and divides by the rank
    settings = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(lora.targets))
    inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) or name.startswith((*HEAD, "head")))
    logging.getLogger("peft").setLevel(logging.ERROR)
    return model


def is_adapter(name: str) -> bool:
    return DOWN in name or UP in name


def has_adapters(names: Mapping[str, Tensor]) -> bool:
    return any(is_adapter(name) for name in names)


def merged(weights: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Weights as a model without adapters has them: W + alpha / rank B A."""
    found = {name.replace(BASE, "."): value for name, value in weights.items() if not is_adapter(name)}
    for name, down in weights.items():
        if DOWN in name:
            up, whole = weights[name.replace(DOWN, UP)], name.replace(DOWN, ".")
            found[whole] = found[whole] + lora.alpha / lora.rank * (up @ down)
    return found
