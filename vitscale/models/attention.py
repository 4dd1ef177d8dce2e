"""Every token looks at every token."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2) through torch's fused kernel."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, return_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """tokens (B, N, D) -> (B, N, D), and with `return_map` the map (B, H, N, N) of who looks at whom: rows sum to 1.

        Only with `return_map` are the N x N numbers of each head ever stored.
        """
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)    # (B, H, N, K) each
        if return_map:
            weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
            return self._out(weights @ value), weights
        return self._out(F.scaled_dot_product_attention(query, key, value))

    def _out(self, mixed: Tensor) -> Tensor:
        """(B, H, N, K) -> (B, N, D)."""
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
