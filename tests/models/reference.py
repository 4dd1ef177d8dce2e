"""Another implementation with our weights: random ones large enough to matter, under our names."""

from collections.abc import Sequence

import torch
from torch import Tensor


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random and large enough to matter: zeros and ones would hide a swap."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def pictures(height: int, width: int) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(2))


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Their name of a weight -> ours, by replacements (theirs, ours) applied in their order."""
    for theirs, ours in table:
        name = name.replace(theirs, ours)
    return name


def fuse(weights: dict[str, Tensor], parts: Sequence[str], whole: str) -> None:
    """Lay layers side by side that are one of ours: queries, keys, values; a bias that only some of them have is 0 for the others."""
    for name in [name for name in weights if f".{parts[0]}.weight" in name]:
        stem = name.removesuffix(f"{parts[0]}.weight")
        layers = [weights.pop(f"{stem}{part}.weight") for part in parts]
        biases = [weights.pop(f"{stem}{part}.bias", None) for part in parts]
        weights[f"{stem}{whole}.weight"] = torch.cat(layers)
        if any(bias is not None for bias in biases):
            weights[f"{stem}{whole}.bias"] = torch.cat([
                torch.zeros(len(layer)) if bias is None else bias for layer, bias in zip(layers, biases, strict=True)])
