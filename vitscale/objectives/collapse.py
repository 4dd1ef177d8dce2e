"""Whether self-supervised features still tell images apart: numbers that fall when they stop to.

Each is a function of sums over samples, which the caller adds up over ranks.
"""

import math

import torch
from torch import Tensor

from vitscale.models.exact import wide
from vitscale.objectives.prototypes import cross_entropy

RANKME_EPS = 1e-7       # Garrido et al. 2023, equation 1


def entropy(probabilities: Tensor) -> Tensor:
    """(..., K) -> (...) in nats; 0 log 0 is 0."""
    return torch.special.entr(wide(probabilities)).sum(dim=-1)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || softmax(student / temperature)) of logits and probabilities (..., K) -> (...), what of DINO's loss can be learned."""
    return cross_entropy(student, teacher, temperature) - entropy(teacher)


def information(mean: Tensor, mean_entropy: Tensor | float) -> Tensor:
    """How much an answer tells of its image, as a share of what K prototypes could: (H(mean answer) - mean H(answer)) / log K, in 0..1.

    mean (K,): the mean of the teacher's answers.  Both of DINO's collapses (Caron et al. 2021, section 5.3) bring it to 0: the same
    prototype for every image, where both entropies are 0, and all prototypes alike, where both are log K.
    """
    return (entropy(mean) - mean_entropy) / math.log(mean.shape[-1])


def rankme(moments: Tensor) -> Tensor:
    """The sum (D, D) of z z^T over samples' features z, float64 -> RankMe, 1..D: exp of the entropy of the singular values of the matrix of
    features, divided by their sum (Garrido et al. 2023, equation 1)."""
    values = torch.linalg.eigvalsh(moments.double()).clamp(min=0).sqrt()
    return effective_rank(values)


def effective_rank(values: Tensor) -> Tensor:
    """exp(entropy of singular values (D,) over their sum).  None above 0: 0, for there is nothing."""
    total = values.sum()
    shares = values / total.clamp(min=torch.finfo(values.dtype).tiny) + RANKME_EPS
    return torch.where(total > 0, (-(shares * shares.log()).sum()).exp(), torch.zeros_like(total))
