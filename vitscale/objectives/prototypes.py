"""Answers over prototypes: a teacher's, made sharp and spread evenly, and how far a student's are from them (DINO, iBOT, DINOv2).

Nothing here knows of ranks: what must be summed over all of a step's samples goes through `total`, which takes a tensor of sums over those
at hand and gives the sums over all.  Sums and what follows from them are float64.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitscale.models.exact import wide

Total = Callable[[Tensor], Tensor]      # sums over the samples at hand, float64 -> over those of the whole global batch


def centred(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's logits (..., K) -> probabilities in fp32: softmax((logits - centre) / temperature) (Caron et al. 2021, section 3.1)."""
    return ((wide(logits) - wide(centre)) / temperature).softmax(dim=-1)


def moved_centre(centre: Tensor, logits: Tensor, valid: Tensor, momentum: float, total: Total) -> Tensor:
    """The centre (K,) fp32 after a step: momentum x centre + (1 - momentum) x the mean of the teacher's logits (n, K) over those rows of
    the global batch that are valid (n,) (Caron et al. 2021, equation 4).  Without a valid row it stays."""
    counted = valid.bool()
    sums = total(torch.cat([torch.where(counted[:, None], logits.double(), 0.0).sum(dim=0), counted.double().sum()[None]]))
    mean = sums[:-1] / sums[-1].clamp(min=1)
    return torch.where(sums[-1] > 0, momentum * centre.double() + (1 - momentum) * mean, centre.double()).to(centre.dtype)


def sinkhorn(logits: Tensor, valid: Tensor, temperature: float, total: Total, iterations: int = 3) -> Tensor:
    """The teacher's logits (n, K) -> probabilities (n, K) fp32 that use every prototype equally over the global batch.

    Sinkhorn-Knopp as in SwAV (Caron et al. 2020, section 3.1) and DINOv2 (Oquab et al. 2024): exp(logits / temperature), then in turn each
    prototype's column is scaled to 1 / K of all and each row to 1.  Rows sum to 1; columns do so only in the limit.  A row that is not
    valid (n,) counts for nothing.  The rows stay where they are: each iteration exchanges the K sums of columns, no more.

    Of prototypes and features of length 1 logits lie in -1..1; so in fp32 a temperature down to 0.012 neither overflows nor vanishes.
    """
    scores = torch.where(valid.bool()[:, None], wide(logits) / temperature, 0.0).exp()
    rows, counted = scores.new_ones(len(scores)), valid.to(scores.dtype)
    for _ in range(iterations):
        sums = total((rows * counted @ scores).double()).clamp(min=torch.finfo(torch.float64).tiny)
        columns = (sums.mean() / sums).to(scores.dtype)         # to within a factor, which the rows make up for
        rows = 1 / (scores @ columns)
    return scores * columns * rows[:, None]


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-sum_k teacher_k log softmax(student / temperature)_k.  student logits (..., K), teacher (..., K) of any sum >= 0 -> (...) fp32."""
    scaled = wide(student) / temperature
    return scaled.logsumexp(dim=-1) * teacher.sum(dim=-1) - (scaled * teacher).sum(dim=-1)


def view_losses(student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
    """DINO's loss of each image (b,): the mean of cross_entropy over the pairs of a teacher's view and another view of the student's.

    student: logits (b, K) of each view, the teacher's views first; teacher: probabilities (b, K) of each of its views.
    Caron et al. 2021, equation 3 and algorithm 1; DINOv2 weighs its pairs alike.
    """
    every, losses = torch.stack(list(teacher)).sum(dim=0), []
    for view, logits in enumerate(student):
        losses.append(cross_entropy(logits, every - teacher[view] if view < len(teacher) else every, temperature))
    return torch.stack(losses).sum(dim=0) / ((len(student) - 1) * len(teacher))


def patch_losses(student: Tensor, teacher: Tensor, image: Tensor, images: int, temperature: float) -> Tensor:
    """iBOT's loss of each image (images,): the mean of cross_entropy over its masked patches, 0 where none is masked.

    student logits and teacher probabilities (m, K) of the masked patches alone, the student having seen a mask there and the teacher the
    patch itself; image (m,) int64 says whose each one is.  Zhou et al. 2022, equation 2.
    """
    losses = cross_entropy(student, teacher, temperature)
    sums = losses.new_zeros(images).index_add(0, image, losses)
    counts = losses.new_zeros(images).index_add(0, image, torch.ones_like(losses))
    return sums / counts.clamp(min=1)
