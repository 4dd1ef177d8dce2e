"""From the tokens of an image to one vector: attention pooling (the class token and the mean need no module); and a hidden layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.models.mlp import MLP


class AttentionPool(nn.Module):
    """Multi-head attention pooling, MAP (Zhai et al. 2022, section 3.2, after Lee et al. 2019, Set Transformer).

    One learned probe looks at all tokens; what it sees goes through a residual MLP.  Parameter names are timm's.
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-6, act: str = "gelu") -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, act=act)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, N, D) -> (B, D)."""
        probe = self.latent.expand(tokens.shape[0], -1, -1)
        query = self.q(probe).unflatten(-1, (self.heads, -1)).transpose(1, 2)                       # (B, H, 1, K)
        key, value = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class Hidden(nn.Module):
    """A layer with tanh between the pooled features and the classifier (Dosovitskiy et al. 2021, section 3.1: the head of pretraining)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, hidden)."""
        return torch.tanh(self.fc(pooled))
