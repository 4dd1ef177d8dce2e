"""Each token by itself: two layers with a GELU between."""

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
