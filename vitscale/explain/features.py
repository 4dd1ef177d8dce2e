"""What the features of places have in common."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.explain.filters import principal_components


def feature_colours(features: Tensor) -> Tensor:
    """The three strongest principal components of all places as red, green and blue (Oquab et al. 2023, DINOv2, figure 1).

    features (B, down, across, D) -> (B, down, across, 3), 0 to 1.  Images that are given together share their components, so that equal
    colours mean equal features; each component is stretched from its 1st to its 99th percentile.
    """
    rows = features.flatten(0, 2).float()
    components, _ = principal_components(rows, 3)
    scores = (rows - rows.mean(dim=0)) @ components.T
    low, high = (torch.quantile(scores, share, dim=0) for share in (0.01, 0.99))
    scaled = ((scores - low) / (high - low).clamp(min=torch.finfo(scores.dtype).tiny)).clamp(0, 1)
    scaled = F.pad(scaled, (0, 3 - scaled.shape[1]), value=0.5)         # fewer than three components: of two places, or of two features
    return scaled.unflatten(0, features.shape[:3])


def feature_similarity(features: Tensor) -> Tensor:
    """features (B, down, across, D) -> cosines (B, places, places) between the features of any two places of an image."""
    unit = F.normalize(features.flatten(1, 2).float(), dim=-1)
    return unit @ unit.transpose(1, 2)
