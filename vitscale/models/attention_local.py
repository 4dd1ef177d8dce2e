"""Each patch looks at those near it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.models.attention import Layout
from vitscale.models.attention_pattern import PatternAttention, group_attention, with_before


class LocalAttention(PatternAttention):
    """Windows of w x w patches that look at themselves and `halo` patches around (Vaswani et al. 2021, HaloNet).

    Without a halo these are Swin's windows, unshifted.  A grid that the window does not divide is filled up below and to the right with
    patches that nobody looks at.  O(N (w + 2 halo)^2 D + N D^2).
    """

    def __init__(self, width: int, heads: int, window: int, halo: int, **options: Any) -> None:
        super().__init__(width, heads, **options)
        self.window, self.halo = window, halo

    def mix_patches(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        window, (height, width), before = self.window, layout.grid, layout.before
        cut = self.windows(query, layout.grid, 0)
        seen = None
        if self.halo or height % window or width % window:
            seen = self.windows(query.new_ones(1, 1, height * width, 1), layout.grid, self.halo)[0, 0, :, :, 0] > 0
            seen = F.pad(seen, (before, 0), value=True)
        keys, values = (
            with_before(self.windows(both[:, :, before:], layout.grid, self.halo), both[:, :, :before]) for both in (key, value))
        mixed = group_attention(cut, keys, values, seen)                                            # (B, H, windows, w^2, K)
        down = -(-height // window)
        mixed = mixed.unflatten(2, (down, -1)).unflatten(4, (window, window)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return mixed[:, :, :height, :width].flatten(2, 3)

    def windows(self, patches: Tensor, grid: tuple[int, int], halo: int) -> Tensor:
        """(B, H, patches, K) -> (B, H, windows, (w + 2 halo)^2, K), zeros where the grid has ended."""
        down, across = -grid[0] % self.window, -grid[1] % self.window
        image = patches.unflatten(2, grid)
        if halo or down or across:
            image = F.pad(image, (0, 0, halo, halo + across, halo, halo + down))
        # gathered by index: the compiler of torch 2.13 gets the gradient of unfold() wrong on a CPU and writes beyond its memory
        inside = torch.arange(self.window + 2 * halo, device=patches.device)
        rows, columns = (torch.arange(0, length, self.window, device=patches.device)[:, None] + inside for length in grid)
        cut = image[:, :, rows[:, None, :, None], columns[None, :, None, :]]                        # (B, H, down, across, side, side, K)
        return cut.flatten(4, 5).flatten(2, 3)

    def allowed(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        down, across = (self.near(length, device) for length in grid)
        return (down[:, None, :, None] & across[None, :, None, :]).reshape(1, grid[0] * grid[1], -1)

    def near(self, length: int, device: torch.device) -> Tensor:
        """On one axis: does place i look at place j?  (length, length)."""
        places = torch.arange(length, device=device)
        begin = places // self.window * self.window
        return (places >= begin[:, None] - self.halo) & (places < begin[:, None] + self.window + self.halo)
