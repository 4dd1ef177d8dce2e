"""KoLeo: features of different images keep away from each other (Sablayrolles et al. 2019, Spreading vectors, section 3.2; DINOv2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.models.exact import wide

EPS = 1e-8      # added to the difference of two features, and to their distance: DINOv2's


def koleo_losses(features: Tensor, valid: Tensor, group: int) -> Tensor:
    """features (b, D), valid (b,) -> (b,) fp32: minus the logarithm of the distance to the nearest of the other valid images of the group.

    The Kozachenko-Leonenko estimate of differential entropy, of features of length 1, up to constants.  b is a multiple of `group`, whose
    images lie one behind the other; of equally near ones the first is the nearest.  An image without another valid one in its group, or
    not valid itself, has a loss of 0.
    """
    rows = F.normalize(wide(features), dim=-1).unflatten(0, (-1, group))                        # (groups, n, D)
    counted = valid.bool().unflatten(0, (-1, group))
    with torch.no_grad():
        cosines = rows @ rows.transpose(1, 2)
        cosines.masked_fill_(torch.eye(group, dtype=torch.bool, device=rows.device) | ~counted[:, None, :], -2.0)
        best, nearest = cosines.max(dim=2)
    others = rows.gather(1, nearest[:, :, None].expand_as(rows))
    distance = (rows - others + EPS).square().sum(dim=-1).sqrt()
    return torch.where(counted & (best > -2.0), -(distance + EPS).log(), 0.0).flatten()
