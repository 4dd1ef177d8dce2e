"""From the maps of single layers to one map through all of them: rollout, with and without gradients, and relevance.  Pure functions."""

import torch
from torch import Tensor


def rollout(maps: Tensor, residual: float = 0.5) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, section 3.1).  maps (L, B, H, N, N) -> (B, N, N); rows sum to 1.

    Row i says how much of each input token is in token i after the last layer, were the layers nothing but weighted sums: each adds to a
    token, whose share is `residual`, what it looks at, averaged over heads.
    """
    return _through(maps.mean(dim=2), residual)


def gradient_rollout(maps: Tensor, gradients: Tensor, residual: float = 0.5) -> Tensor:
    """Rollout in which a head counts as much as a class's logit would rise with what it looks at.  As rollout(); rows sum to 1.

    Of each layer the mean over heads of (gradient x map), where that is positive, takes the map's place, its rows scaled to sum to 1
    (rows of zeros: the token looks at itself).  So every layer counts alike; relevance() leaves it to the gradients.
    """
    positive = _positive(maps, gradients)
    sums = positive.sum(dim=-1, keepdim=True)
    own = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    return _through(torch.where(sums > 0, positive / sums.clamp(min=torch.finfo(maps.dtype).tiny), own), residual)


def relevance(maps: Tensor, gradients: Tensor) -> Tensor:
    """Class-specific relevance (Chefer et al. 2021, Generic attention-model explainability, equations 5 and 6).
    maps and gradients (L, B, H, N, N) -> (B, N, N), without the identity it begins with: what each token owes to each input token.

    R = 1; layer by layer R = R + A R, with A the mean over heads of (gradient x map) where that is positive.
    """
    own = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    total = own.expand(maps.shape[1], -1, -1)
    for layer in _positive(maps, gradients):
        total = total + layer @ total
    return total - own


def _positive(maps: Tensor, gradients: Tensor) -> Tensor:
    """(L, B, H, N, N) twice -> (L, B, N, N)"""
    return (gradients * maps).clamp(min=0).mean(dim=2)


def _through(maps: Tensor, residual: float) -> Tensor:
    """(L, B, N, N) -> the product (B, N, N) of all layers, the last one first, each with its residual connection."""
    if not 0 <= residual <= 1:
        raise ValueError(f"residual is a share, 0 to 1, got {residual}")
    own = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    total = own.expand(maps.shape[1], -1, -1)
    for layer in maps:
        total = (residual * own + (1 - residual) * layer) @ total
    return total
