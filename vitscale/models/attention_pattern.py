"""Patches that look at some of the patches, and tokens before them that look at all and are looked at by all."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.models.attention import Attention, Layout


class PatternAttention(Attention):
    """The frame of local, axial and sparse attention.

    What stands before the patches (class tokens, registers) is global both ways (Beltagy et al. 2020, Longformer, section 3.1; Zhang et
    al. 2021, Multi-scale vision Longformer): it looks at all tokens and all look at it.  So a patch reaches any other in two blocks.  No
    mask of N x N is made, except for the map.  Plain gathers and torch's fused kernel; not measured on a GPU.
    """

    @abstractmethod
    def mix_patches(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        """Queries of the patches (B, H, patches, K), keys and values of all tokens -> what each patch sees (B, H, patches, K)."""

    @abstractmethod
    def allowed(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Which patch looks at which: (H or 1, patches, patches), true or false.  For the map alone."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout | None) -> Tensor:
        assert layout is not None, "which patches a patch looks at depends on their grid"
        patches = self.mix_patches(query[:, :, layout.before:], key, value, layout)
        if not layout.before:
            return patches
        first = F.scaled_dot_product_attention(query[:, :, :layout.before], key, value)
        return torch.cat([first, patches], dim=2)

    def bias(self, layout: Layout | None, query: Tensor) -> Tensor:
        """0 where a token looks, minus infinity where it does not."""
        assert layout is not None, "which patches a patch looks at depends on their grid"
        seen = F.pad(self.allowed(layout.grid, query.device), (layout.before, 0, layout.before, 0), value=True)
        return torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, float("-inf"))


def with_before(groups: Tensor, before: Tensor) -> Tensor:
    """(B, H, G, S, K) of each group, with what all groups share (B, H, T, K) laid before it -> (B, H, G, T + S, K)."""
    if not before.shape[2]:
        return groups
    return torch.cat([before[:, :, None].expand(-1, -1, groups.shape[2], -1, -1), groups], dim=3)


def group_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Queries (B, H, G, Q, K) of G groups look at the keys (B, H, G, S, K) of their own group, where `seen` (G, S) -> as the queries.

    Groups stand beside the heads, since the fused kernels take four dimensions.
    """
    heads, groups = query.shape[1:3]
    mask = None if seen is None else seen.repeat(heads, 1)[None, :, None, :]
    mixed = F.scaled_dot_product_attention(query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2), attn_mask=mask)
    return mixed.unflatten(1, (heads, groups))
