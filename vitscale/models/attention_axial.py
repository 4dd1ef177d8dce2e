"""Each patch looks along its row, or along its column."""

import torch
from torch import Tensor

from vitscale.models.attention import Layout
from vitscale.models.attention_pattern import PatternAttention, group_attention, with_before


class AxialAttention(PatternAttention):
    """Half of the heads (rounded up) look along rows, the others along columns.

    Ho et al. 2019 (Axial attention in multidimensional transformers) and Wang et al. 2020 (Axial-DeepLab) have one layer for rows and
    another for columns; that both share a layer, each with half of the heads, is Dong et al. 2022 (CSWin), here with stripes
    one patch wide.  So a layer has as many parameters as any other attention.  O(N^1.5 D + N D^2) on a square grid.
    """

    def mix_patches(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        rows = (self.heads + 1) // 2
        along_rows = self.lines(query[:, :rows], key[:, :rows], value[:, :rows], layout, across=False)
        along_columns = self.lines(query[:, rows:], key[:, rows:], value[:, rows:], layout, across=True)
        return torch.cat([along_rows, along_columns], dim=1)

    def lines(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, across: bool) -> Tensor:
        """Attention inside each row, or where `across` inside each column."""
        def cut(patches: Tensor) -> Tensor:
            image = patches.unflatten(2, layout.grid)
            return image.transpose(2, 3) if across else image

        keys, values = (with_before(cut(both[:, :, layout.before:]), both[:, :, :layout.before]) for both in (key, value))
        mixed = group_attention(cut(query), keys, values)
        return (mixed.transpose(2, 3) if across else mixed).flatten(2, 3)

    def allowed(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        place = torch.arange(grid[0] * grid[1], device=device)
        row, column = place // grid[1], place % grid[1]
        pairs = torch.stack([row[:, None] == row, column[:, None] == column])
        return pairs.repeat_interleave(torch.tensor([(self.heads + 1) // 2, self.heads // 2], device=device), dim=0)
