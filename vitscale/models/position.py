"""Where a patch stands: tables of positions, turns of queries and keys, biases by offset; and the same for another grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 10_000.0      # of Vaswani et al. 2017, section 3.5
ROTARY_BASE = 100.0         # of Siméoni et al. 2025 (DINOv3); Heo et al. 2024 (Rotary position embedding for ViT), section 3, has it too


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


def interpolated(numbers: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """(B, C, height, width) -> (B, C, *size); `kind` is a recipe's model.position_interpolation."""
    if kind == "geometric":
        down, across = (geometric(*sides).to(numbers) for sides in zip(numbers.shape[2:], size, strict=True))
        return down @ numbers @ across.T
    mode, _, antialias = kind.partition("_")
    return F.interpolate(numbers, size=size, mode=mode, align_corners=False, antialias=bool(antialias))


def geometric(old: int, new: int) -> Tensor:
    """The matrix (new, old) that interpolates biases of `old` offsets, an odd number about 0, to `new` ones: linear between places whose
    distances grow geometrically from the middle, the outermost lying about where the new ones do (the code of Bao et al. 2022, BEiT)."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2 else (ratio, high)
    ones_side = [sum(ratio**power for power in range(count)) for count in range(1, old // 2 + 1)]
    places = torch.tensor([*(-place for place in reversed(ones_side)), 0.0, *ones_side], device="cpu")
    wanted = torch.arange(new, dtype=torch.float32, device="cpu") - new // 2
    right = torch.bucketize(wanted, places).clamp(max=old - 1)
    left = (right - 1).clamp(min=0)
    share = ((wanted - places[left]) / (places[right] - places[left]).clamp(min=1e-12)).clamp(0, 1)[:, None]     # of the right one
    numbers = torch.arange(old, device="cpu")
    return (1 - share) * (left[:, None] == numbers) + share * (right[:, None] == numbers)


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int], kind: str = "bicubic") -> Tensor:
    """A table (1, rows + N, D) of the grid `old` -> (1, rows + N', D) of the grid `new`, interpolated in fp32, in the table's dtype.

    Dosovitskiy et al. 2021, section 3.2.  Rows before the patches (the class token's) stay as they are.
    """
    if old == new:
        return table
    rows = table.shape[1] - old[0] * old[1]
    patches = table[:, rows:].float().unflatten(1, old).permute(0, 3, 1, 2)
    patches = interpolated(patches, new, kind)
    return torch.cat([table[:, :rows], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def rotary(grid: tuple[int, int], width: int, device: torch.device | str | None = None, kind: str = "dinov3",
           temperature: float = ROTARY_BASE, reference: int | None = None, offset: float = 0.0, boxes: Tensor | None = None) -> Tensor:
    """Angles (patches, K) in fp32 by which queries and keys of width K are turned (Su et al. 2021, RoFormer) along both axes; with boxes
    (L, 2, 2), as jittered() has them, (L, patches, K).

    There are K / 4 frequencies temperature ** (-4 i / K) for each axis; the second half of K repeats the first, since pair i is
    (i, i + K / 2).  dinov3 (Siméoni et al. 2025): a patch's centre lies in -1..1 on each axis, whatever the grid, so another size needs no
    interpolation.  axial (Heo et al. 2024, section 3; Fang et al. 2023, EVA-02): patches are counted from `offset`, and where there is a
    `reference`, any grid counts as so many on a side.
    """
    if width % 4:
        raise ValueError(f"rotary positions want heads whose width is divisible by 4, got {width}")
    rate = temperature ** (-torch.arange(0, 1, 4 / width, dtype=torch.float32, device=device))                     # (K / 4,)
    numbers = [torch.arange(side, dtype=torch.float32, device=device) + offset for side in grid]
    if kind == "dinov3":
        lines = [2 * (line + 0.5) / side - 1 for line, side in zip(numbers, grid, strict=True)]
    else:
        lines = numbers if reference is None else [line / side * reference for line, side in zip(numbers, grid, strict=True)]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, 1)                               # (patches, 2)
    if boxes is not None:
        places = (places + boxes[:, None, 0]) * boxes[:, None, 1]
    whole = 2 * torch.pi if kind == "dinov3" else 1.0
    return (whole * places[..., None] * rate).flatten(-2).tile(2)


def jittered(draws: Tensor, shift: float | None, jitter: float | None, rescale: float | None) -> Tensor:
    """Uniforms (..., 5) -> boxes (..., 2, 2) in fp32: by how much places are moved along both axes, and how much further apart they then
    lie.

    Siméoni et al. 2025 (DINOv3), section 3.2 and its code: moved evenly by -shift to shift, stretched log-evenly by 1 / jitter to jitter on
    each axis, and by 1 / rescale to rescale on both.
    """
    around = 2 * draws.double() - 1
    moved = around[..., :2] * (shift or 0.0)
    stretched = around[..., 2:4] * math.log(jitter or 1.0) + around[..., 4:] * math.log(rescale or 1.0)
    return torch.stack([moved, stretched.exp()], dim=-2).float()


def mixed(grid: tuple[int, int], frequencies: Tensor) -> Tensor:
    """Angles (H, patches, K) of heads whose pairs have frequencies of their own, (H, K): K / 2 down, then K / 2 across (Heo et al. 2024,
    section 3.3, RoPE-Mixed)."""
    down, across = frequencies[:, None].chunk(2, dim=-1)                                                            # (H, 1, K / 2) each
    lines = (torch.arange(side, dtype=frequencies.dtype, device=frequencies.device) for side in grid)
    rows, columns = (place.flatten()[:, None] for place in torch.meshgrid(*lines, indexing="ij"))                   # (patches, 1) each
    return (rows * down + columns * across).tile(2)


def first_frequencies(heads: int, width: int, temperature: float, generator: torch.Generator) -> Tensor:
    """What mixed() begins with (H, K): axial ones along two axes at right angles, which each head turns by an angle of its own."""
    rate = temperature ** (-torch.arange(0, 1, 4 / width))                                                          # (K / 4,)
    angle = torch.rand(heads, 1, generator=generator) * 2 * torch.pi
    return torch.cat([rate * angle.sin(), rate * angle.cos(), rate * angle.cos(), -rate * angle.sin()], dim=1)


def turned(vectors: Tensor, angles: Tensor) -> Tensor:
    """Queries or keys (B, H, N, K), the last of whose tokens are patches, turned by angles ([H,] patches, K); those before stay."""
    before = vectors.shape[2] - angles.shape[-2]
    patches = vectors[:, :, before:].float()
    first, second = patches.chunk(2, dim=-1)
    patches = patches * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return torch.cat([vectors[:, :, :before], patches.to(vectors.dtype)], dim=2)


def offset_index(grid: tuple[int, int], before: int, device: torch.device | str | None = None) -> Tensor:
    """The row of a table of relative positions that each pair of tokens has: (N, N) int64, `before` tokens standing before the patches.

    Rows (2 h - 1)(2 w - 1) are the offsets between patches; then, if anything stands before them, one each for its looking at patches,
    patches looking at it, and its looking at itself (Bao et al. 2022, BEiT).
    """
    height, width = grid
    place = torch.stack(torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")).flatten(1)
    down, across = (place[:, :, None] - place[:, None, :]).unbind(0)
    patches = (down + height - 1) * (2 * width - 1) + across + width - 1
    rows = (2 * height - 1) * (2 * width - 1)
    index = torch.full((before + height * width,) * 2, rows + 2, dtype=torch.int64, device=device)
    index[:before, before:], index[before:, :before], index[before:, before:] = rows, rows + 1, patches
    return index


def log_spaced(grid: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """The offsets between patches, (2 h - 1)(2 w - 1) of them in offset_index's order, each as sign(x) ln(1 + |x|): (offsets, 2) fp32
    (Liu et al. 2022, Swin V2, section 3.3)."""
    lines = (torch.arange(1 - side, side, dtype=torch.float32, device=device) for side in grid)
    offsets = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, 1)
    return offsets.sign() * offsets.abs().log1p()


def resample_offsets(table: Tensor, old: tuple[int, int], new: tuple[int, int], kind: str = "bicubic") -> Tensor:
    """A table of relative positions (rows, H) of the grid `old` -> that of the grid `new`, interpolated in fp32, in the table's dtype."""
    if old == new:
        return table
    spans = (2 * old[0] - 1, 2 * old[1] - 1), (2 * new[0] - 1, 2 * new[1] - 1)
    count = spans[0][0] * spans[0][1]
    offsets = table[:count].float().T.unflatten(1, spans[0])[None]
    offsets = interpolated(offsets, spans[1], kind)
    return torch.cat([offsets[0].flatten(1).T.to(table.dtype), table[count:]])
