"""Gram anchoring: how alike an image's patches are to each other stays as an earlier teacher has it (Siméoni et al. 2025, DINOv3)."""

import torch.nn.functional as F
from torch import Tensor

from vitscale.models.exact import wide


def gram_losses(student: Tensor, anchor: Tensor) -> Tensor:
    """Patch features (b, N, D) and (b, N, E) -> (b,) fp32: the mean squared difference of the two N x N matrices of cosines.

    Siméoni et al. 2025, section 4.2: || X_S X_S^T - X_G X_G^T ||_F^2, here as the published code has it, divided by N^2.
    """
    return (cosines(student) - cosines(anchor)).square().mean(dim=(1, 2))


def cosines(patches: Tensor) -> Tensor:
    """(b, N, D) -> (b, N, N) fp32."""
    rows = F.normalize(wide(patches), dim=-1)
    return rows @ rows.transpose(1, 2)


def shrunk(patches: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Features (b, N, D) of a finer grid -> (b, n, D) of the student's, bicubic in fp32 as the published code has it (section 4.3)."""
    if old == new:
        return patches
    maps = wide(patches).transpose(1, 2).unflatten(2, old)
    return F.interpolate(maps, size=new, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
