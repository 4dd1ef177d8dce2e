"""Where a patch stands: tables of positions, and the same table for another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 10_000.0      # of Vaswani et al. 2017, section 3.5


def sincos(grid: tuple[int, int], width: int, device: torch.device | str | None = None) -> Tensor:
    """Fixed 2-D sine-cosine positions (1, N, D), fp32, row by row: a quarter of D each for sin x, cos x, sin y, cos y.

    Chen et al. 2021 (MoCo v3) and He et al. 2022 (MAE): frequency i of D/4 is TEMPERATURE ** (-i / (D/4)), coordinates count
    patches.  (big_vision divides i by D/4 - 1 instead.)  `width` is divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions want a width divisible by 4, got {width}")
    quarter = width // 4
    rate = TEMPERATURE ** (-torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    down = torch.arange(grid[0], dtype=torch.float64, device=device)[:, None, None] * rate
    across = torch.arange(grid[1], dtype=torch.float64, device=device)[None, :, None] * rate
    down, across = down.expand(*grid, quarter), across.expand(*grid, quarter)
    table = torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=-1)
    return table.reshape(1, grid[0] * grid[1], width).float()


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A table (1, rows + N, D) of the grid `old` -> (1, rows + N', D) of the grid `new`, bicubic in fp32, in the table's dtype.

    Dosovitskiy et al. 2021, section 3.2.  Rows before the patches (the class token's) stay as they are.
    """
    if old == new:
        return table
    rows = table.shape[1] - old[0] * old[1]
    patches = table[:, rows:].float().unflatten(1, old).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :rows], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
