"""Each token by itself: two layers with an activation or a gate between."""

import functools
from abc import abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.kernels.parts import Fusing
from vitscale.models.fused import Branch, activated, apart, normed


class QuickGELU(nn.Module):
    """x times sigmoid(1.702 x): GELU as CLIP has it (Hendrycks & Gimpel 2016, section 2)."""

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers * (1.702 * numbers).sigmoid()


# by the recipe's names; gelu is exact (Hendrycks & Gimpel 2016), gelu_tanh the approximation of that paper's code
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU, "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"), "quick_gelu": QuickGELU, "silu": nn.SiLU, "relu": nn.ReLU}


class TwoLayers(Fusing):
    """What stands between the layers is the subclass's `hidden`: (B, N, D) -> (B, N, hidden)."""

    fc2: nn.Linear
    drop: nn.Dropout

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """What the second layer is given."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.hidden(tokens)))

    def branch(self, tokens: Tensor) -> Branch:
        """forward's answer, and the last bias where whoever adds the branch finds its gradient."""
        return (self(tokens), None) if self.drop.p else apart(self.fc2, self.hidden(tokens), self.parts)


class MLP(TwoLayers):
    """Linear, activation, linear, dropout: (B, N, D) -> (B, N, D) (Dosovitskiy et al. 2021, section 3.1); `eps` of a norm before the
    second layer, if there is one."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, act: str = "gelu", eps: float | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[act]()
        self.norm = nn.Identity() if eps is None else nn.LayerNorm(hidden, eps=eps)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def hidden(self, tokens: Tensor) -> Tensor:
        return normed(self.norm, activated(self.fc1, self.act, tokens, self.parts), self.parts)


class GatedMLP(TwoLayers):
    """SwiGLU (Shazeer 2020): silu of one half times the other, `hidden` wide after it; both halves in one layer, as in DINOv2."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, eps: float | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.norm = nn.Identity() if eps is None else nn.LayerNorm(hidden, eps=eps)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def hidden(self, tokens: Tensor) -> Tensor:
        gate, value = self.fc1(tokens).chunk(2, dim=-1)
        return normed(self.norm, F.silu(gate) * value, self.parts)
