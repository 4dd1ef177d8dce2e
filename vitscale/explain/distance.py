"""How far heads look."""

import torch
from torch import Tensor


def attention_distance(maps: Tensor, grid: tuple[int, int], patch: int, before: int = 0) -> Tensor:
    """Mean attention distance (Dosovitskiy et al. 2021, section 4.5 and figure 7).  maps (L, B, H, N, N) -> (L, H), in pixels.

    The distance between the centres of a patch and of those it looks at, weighted by how much it does, averaged over patches and images.
    What stands before the patches has no place and is left out: the weights of the others are scaled to sum to 1.
    """
    among = maps[..., before:, before:]
    among = among / among.sum(dim=-1, keepdim=True)
    lines = (torch.arange(side, dtype=maps.dtype, device=maps.device) for side in grid)
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, 1) * patch
    apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    return (among * apart).sum(dim=-1).mean(dim=(1, 3))
