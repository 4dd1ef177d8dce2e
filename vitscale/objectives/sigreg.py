"""LeJEPA: views of an image agree, and all embeddings together are an isotropic Gaussian (Balestriero & LeCun 2025).

SIGReg holds the second by Epps & Pulley's test on random directions.  It looks at the whole global batch, yet through sums of cosines and
sines alone: what a sample adds to them is its own affair, and so is its gradient once d statistic / d sums is known.
"""

import torch
from torch import Tensor

from vitscale.models.exact import wide

FARTHEST, KNOTS = 3.0, 17       # of the characteristic function's argument: its largest, and how many from 0 on; the published code's


def directions(normals: Tensor) -> Tensor:
    """Normal numbers (D, M), drawn by key -> M directions of length 1, the columns."""
    return normals / normals.norm(dim=0)


def knots(device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """t (T,) in 0..FARTHEST; exp(-t^2 / 2), the characteristic function of a normal distribution and the window; the weights of the
    trapezoidal rule times the window, doubled, since -t tells the same as t.  float64."""
    t = torch.linspace(0, FARTHEST, KNOTS, dtype=torch.float64, device=device)
    weights = torch.full_like(t, 2 * FARTHEST / (KNOTS - 1))
    weights[0] = weights[-1] = FARTHEST / (KNOTS - 1)
    window = (-t.square() / 2).exp()
    return t, window, weights * window


def waves(embedded: Tensor, along: Tensor) -> Tensor:
    """Embeddings (..., D), directions (D, M) -> (..., 2, M, T): cos and sin of t times each projection, in fp32 at least."""
    embedded = wide(embedded)
    turns = (embedded @ along.to(embedded.dtype))[..., None] * knots(embedded.device)[0].to(embedded.dtype)
    return torch.stack([turns.cos(), turns.sin()], dim=-3)


def statistic(sums: Tensor, count: Tensor | float) -> Tensor:
    """Sums (..., 2, M, T) of waves over `count` embeddings -> (...): n times the weighted squared distance of the empirical
    characteristic function from that of a standard normal distribution, mean over directions (section 4.2, equation of Epps & Pulley)."""
    _, normal, weights = knots(sums.device)
    cosine, sine = (sums.double() / count).unbind(-3)
    return (((cosine - normal).square() + sine.square()) @ weights).mean(dim=-1) * count


def pull(sums: Tensor, count: Tensor | float) -> tuple[Tensor, Tensor]:
    """The sums over the global batch -> (statistic, its derivative by the sums), which a sample needs and nothing else."""
    leaf = sums.double().detach().requires_grad_()
    with torch.enable_grad():
        value = statistic(leaf, count)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def pulled(embedded: Tensor, along: Tensor, slope: Tensor) -> Tensor:
    """Embeddings (b, D) -> (b,) whose gradients by the embeddings are those of the statistic of all samples.  Its value means nothing."""
    return (waves(embedded, along) * slope.to(wide(embedded).dtype)).sum(dim=(-3, -2, -1))


def shared_pull(sums: Tensor, slope: Tensor, along: Tensor) -> Tensor:
    """The sums (..., 2, M, T), the statistic's derivative by them, directions (D, M) -> (D,): its gradient by a shift that all embeddings
    make together."""
    t, (cosine, sine), (by_cosine, by_sine) = knots(sums.device)[0], sums.double().unbind(-3), slope.double().unbind(-3)
    turned = (cosine * by_sine - sine * by_cosine) @ t
    return along.double() @ turned.flatten(0, -2).sum(dim=0)


def invariance_losses(embedded: Tensor, views: int) -> Tensor:
    """Embeddings (V, b, D) of all views, of which the first `views` are global -> (b,) fp32: mean squared distance from the global ones'
    mean, over views and dimensions (section 5, algorithm 2; there is a gradient through the mean too)."""
    embedded = wide(embedded)
    return (embedded - embedded[:views].mean(dim=0)).square().mean(dim=(0, 2))
