"""Every token looks at every token."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.kernels.heads import split_heads, split_heads_plainly
from vitscale.kernels.parts import Fusing, takes
from vitscale.models.exact import exact, keep_exact_, reset_exact_
from vitscale.models.fused import Branch, apart, normed
from vitscale.models.position import log_spaced, mixed, offset_index, resample_offsets, turned


@dataclass(frozen=True)
class Layout:
    """What an attention may know of its tokens besides themselves."""

    grid: tuple[int, int]               # of the patches, which come last, row by row
    before: int = 0                     # tokens that stand before them
    angles: Tensor | None = None        # (patches, K) of rotary positions


class QueryKeyValue(nn.Linear):
    """(B, N, D) -> (B, N, 3 D), of which keys have no bias: `bias` (2 D) is that of queries, then of values."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width)
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight, whole_bias(self.bias))


def whole_bias(bias: Tensor) -> Tensor:
    """That of queries and values (2 D) -> with zeros for the keys between them (3 D)."""
    query, value = bias.chunk(2)
    return torch.cat([query, torch.zeros_like(query), value])


class Attention(Fusing):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2) through torch's fused kernel.  O(N^2 D + N D^2)."""

    def __init__(
        self, width: int, heads: int, qkv_bias: bool = True, dropout: float = 0.0, qk_norm: bool = False, eps: float = 1e-6,
        scale: float | None = None, key_bias: bool = True, scale_norm: bool = False, interpolation: str = "bicubic",
    ) -> None:
        """`scale` of the products of queries and keys; None: 1 / sqrt(K).  `scale_norm`: a norm before the last layer."""
        super().__init__()
        self.heads, self.scale, self.interpolation = heads, scale, interpolation
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias) if key_bias or not qkv_bias else QueryKeyValue(width)
        self.q_norm = nn.LayerNorm(width // heads, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=eps) if qk_norm else nn.Identity()
        self.norm = nn.LayerNorm(width, eps=eps) if scale_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, layout: Layout | None = None, return_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """tokens (B, N, D) -> (B, N, D), and with `return_map` the map (B, H, N, N) of who looks at whom: rows sum to 1.

        Only with `return_map` are the N x N numbers of each head ever stored.
        """
        query, key, value = self.project(tokens, layout)
        if return_map:
            weights = self.map(query, key, layout)
            return self.out(weights @ value), weights
        return self.out(self.mix(query, key, value, layout))

    def branch(self, tokens: Tensor, layout: Layout | None = None) -> Branch:
        """forward's answer, and the last bias where whoever adds the branch finds its gradient."""
        if self.proj_drop.p:
            return self(tokens, layout), None
        return apart(self.proj, self.joined(self.mix(*self.project(tokens, layout), layout)), self.parts)

    def project(self, tokens: Tensor, layout: Layout | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys, values (B, H, N, K) each, normed and turned as the model asks."""
        if "pack" in self.parts and takes(tokens):
            qkv, bias = apart(self.qkv, tokens, self.parts)
            query, key, value = split_heads(qkv, self.heads, bias)
        else:
            query, key, value = split_heads_plainly(self.qkv(tokens), self.heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if layout is not None and layout.angles is not None:
            query, key = turned(query, layout.angles), turned(key, layout.angles)
        return query, key, value

    def mix(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout | None) -> Tensor:
        """Queries, keys, values (B, H, N, K) each -> what each token sees (B, H, N, K)."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias(layout, query), scale=self.scale)

    def map(self, query: Tensor, key: Tensor, layout: Layout | None) -> Tensor:
        """The weights (B, H, N, N) with which mix() would add up the values."""
        logits = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale)
        bias = self.bias(layout, query)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def bias(self, layout: Layout | None, query: Tensor) -> Tensor | None:
        """(H or 1, N, N) to be added to the logits, in the queries' type; here None."""
        return None

    def reset_buffers(self) -> None:
        """Fill the buffers, of which there are none here, again."""

    def out(self, mixed: Tensor) -> Tensor:
        """(B, H, N, K) -> (B, N, D)."""
        return self.proj_drop(self.proj(self.joined(mixed)))

    def joined(self, mixed: Tensor) -> Tensor:
        """What the last layer is given: the heads of each token side by side, normed if the model asks."""
        return normed(self.norm, mixed.transpose(1, 2).flatten(2), self.parts)


class MixedRotaryAttention(Attention):
    """Each head turns patches' queries and keys by frequencies that it learns, along both axes at once (Heo et al. 2024, section 3.3)."""

    def __init__(self, width: int, heads: int, **options: Any) -> None:
        super().__init__(width, heads, **options)
        self.rope_freqs = nn.Parameter(torch.zeros(heads, width // heads))
        keep_exact_(self, "rope_freqs")

    def reset_buffers(self) -> None:
        reset_exact_(self, "rope_freqs")

    def project(self, tokens: Tensor, layout: Layout | None) -> tuple[Tensor, Tensor, Tensor]:
        assert layout is not None, "how far a patch is turned depends on the grid"
        query, key, value = super().project(tokens, layout)
        angles = mixed(layout.grid, exact(self, "rope_freqs"))
        return turned(query, angles), turned(key, angles), value


class RelativePositionAttention(Attention):
    """A learned bias for each head and offset between patches (Shaw et al. 2018; as a bias: Raffel et al. 2020, Bao et al. 2022, BEiT), or
    one that a small network finds for log-spaced offsets (Liu et al. 2022, Swin V2, section 3.3), where what is no patch has none."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, grid: tuple[int, int], before: int, hidden: int | None = None, **options: Any) -> None:
        """`hidden`: width of the network; None: a table."""
        super().__init__(width, heads, **options)
        self.grid, self.before = grid, before
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + (3 if before else 0)
        self.cpb_mlp = None if hidden is None else nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, heads))
        if hidden is None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("relative_position_index", offset_index(grid, before), persistent=False)

    def reset_buffers(self) -> None:
        self.relative_position_index.copy_(offset_index(self.grid, self.before, "cpu"))

    def bias(self, layout: Layout | None, query: Tensor) -> Tensor:
        grid = self.grid if layout is None else layout.grid
        table = self.table(grid)
        index = self.relative_position_index if grid == self.grid else offset_index(grid, self.before, table.device)
        return table[index].permute(2, 0, 1).to(query.dtype)

    def table(self, grid: tuple[int, int]) -> Tensor:
        """The biases of each row that offset_index may name: (rows, H)."""
        if self.cpb_mlp is None:
            return resample_offsets(self.relative_position_bias_table, self.grid, grid, self.interpolation)
        weight = self.cpb_mlp.get_parameter("0.weight")
        return F.pad(self.cpb_mlp(log_spaced(grid, weight.device).to(weight.dtype)), (0, 0, 0, 3 if self.before else 0))
