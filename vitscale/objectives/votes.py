"""What an image is by the vote of those nearest to it (Wu et al. 2018, Instance discrimination, section 3.4)."""

import torch
from torch import Tensor

TEMPERATURE = 0.07      # of votes: Wu et al. 2018, as Caron et al. 2021 (DINO) evaluate
NEIGHBOURS = 20         # the number with which DINO does best


def voted(cosines: Tensor, labels: Tensor, classes: int) -> Tensor:
    """cosines (q, k) to the k nearest and their labels (q, k) int64 -> the class (q,) with the most votes, each of exp(cosine / 0.07)."""
    votes = torch.zeros(len(cosines), classes, device=cosines.device)
    return votes.scatter_add_(1, labels, (cosines / TEMPERATURE).exp()).argmax(dim=1)
