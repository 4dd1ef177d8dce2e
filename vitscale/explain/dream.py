"""Feature visualisation by optimisation: an image that raises one class's logit."""

import torch
from torch import Tensor

from vitscale.explain.look import Unexplained
from vitscale.models import Backbone


def dream(model: Backbone, wanted: int, size: int, channels: int = 3, steps: int = 256, lr: float = 0.05, seed: int = 0) -> Tensor:
    """Feature visualisation (Olah et al. 2017, Feature visualization) -> (C, size, size), in normalised pixels, within 2.5 of their mean.

    Adam ascends the class's logit over an image's Fourier coefficients, each scaled by the inverse of its frequency (as natural images
    are); every step looks at it moved by some pixels, in a circle, so that no single pixel matters.  The same seed gives the same image
    on one machine.  Raises Unexplained for a class that is not there.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    down, across = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    scale = (1 / (down[:, None] ** 2 + across**2).sqrt().clamp(min=1 / size)).to(device)
    noise = torch.randn(channels, size, size // 2 + 1, 2, generator=generator) * 0.01
    spectrum = noise.to(device).requires_grad_()
    optimizer, reach = torch.optim.Adam([spectrum], lr=lr), max(size // 16, 1)
    for _ in range(steps):
        moves = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        logits = model(_pixels(spectrum, scale, size).roll(moves, dims=(-2, -1))[None])
        if not 0 <= wanted < logits.shape[1]:
            raise Unexplained(f"there is no class {wanted}; this model's classes are 0 to {logits.shape[1] - 1}")
        gradient, = torch.autograd.grad(-logits[0, wanted], spectrum)
        spectrum.grad = gradient
        optimizer.step()
    return _pixels(spectrum, scale, size).detach()


def _pixels(spectrum: Tensor, scale: Tensor, size: int) -> Tensor:
    """(C, size, size // 2 + 1, 2) -> (C, size, size) in -2.5..2.5"""
    return 2.5 * torch.tanh(torch.fft.irfft2(torch.view_as_complex(spectrum) * scale, s=(size, size), norm="ortho"))
