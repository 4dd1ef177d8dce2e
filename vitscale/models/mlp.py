"""Each token by itself: two layers with a GELU or a gate between."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, exact GELU (Hendrycks & Gimpel 2016), linear, dropout: (B, N, D) -> (B, N, D) (Dosovitskiy et al. 2021, section 3.1)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(tokens))))


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): silu of one half times the other, `hidden` wide after it; both halves in one layer, as in DINOv2."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.fc1(tokens).chunk(2, dim=-1)
        return self.drop(self.fc2(F.silu(gate) * value))
