"""From features to answers over prototypes: the head of DINO, iBOT and DINOv2; without prototypes that of LeJEPA."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """Linear layers with GELU between them: `hidden` wide, the last `out` wide (Caron et al. 2021, appendix C: three, without norms).

    normed: a LayerNorm before each GELU, where others have one over the batch, by which a sample's answer would hang on the others'.
    """

    def __init__(self, width: int, hidden: int, out: int, layers: int = 3, normed: bool = False) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) if normed else nn.Identity() for _ in range(layers - 1))

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., out)."""
        features = self.layers[0](features)
        for norm, layer in zip(self.norms, list(self.layers)[1:], strict=True):
            features = layer(F.gelu(norm(features)))
        return features


class Prototypes(nn.Module):
    """Cosines between features and K learned directions: a linear layer whose rows weight normalisation keeps at length 1 (Caron et al.
    2021, appendix C: weight norm with its gain fixed at 1, `norm_last_layer`)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., K) in -1..1."""
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class PrototypeHead(nn.Module):
    """A projection into a narrow space, and prototypes there.  It is one unit: sharded and recomputed as a whole."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, layers: int = 3) -> None:
        super().__init__()
        self.mlp = Projection(width, hidden, bottleneck, layers)
        self.last_layer = Prototypes(bottleneck, prototypes)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> logits (..., K)."""
        return self.last_layer(self.mlp(features))
