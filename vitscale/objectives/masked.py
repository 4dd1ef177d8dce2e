"""Pixels that were hidden are to be told from those that were not: masked autoencoding and inpainting."""

import torch
from torch import Tensor

from vitscale.models import Backbone
from vitscale.models.mae import MaskedAutoencoder
from vitscale.models.simmim import Inpainter
from vitscale.objectives.task import Seen, Task
from vitscale.recipe.check_objective import num_masked, num_visible
from vitscale.recipe.objectives import Inpainting, Mae
from vitscale.recipe.schema import Vit
from vitscale.shapes.vit import grid

NORM_EPS = 1e-6     # beside the variance of a patch's pixels (He et al. 2022, the code's)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """images (b, C, height, width) -> (b, N, P P C): patches row by row, in a patch pixels row by row, channels last."""
    tiles = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))              # (b, C, h, P, w, P)
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class MaskedAutoencoding(Task):
    """Mean squared error over the pixels of the masked patches (He et al. 2022).  One uniform for each patch: the smallest are visible."""

    objective: Mae

    def __init__(self, model: Vit, objective: Mae) -> None:
        self.model, self.objective, self.num_draws = model, objective, grid(model) ** 2

    def build(self) -> Backbone:
        return MaskedAutoencoder(self.model, self.objective)

    def order(self, seen: Seen) -> Tensor:
        """(b, N) int64: patches by their uniforms; of equal ones the first comes first, on every device."""
        assert seen.draws is not None
        return seen.draws.argsort(dim=1, stable=True)

    def inputs(self, seen: Seen) -> tuple[Tensor, ...]:
        return seen.images, self.order(seen)

    def losses(self, output: Tensor, seen: Seen) -> Tensor:
        """output (b, N, P P C)."""
        order = self.order(seen)
        masked = order[:, num_visible(order.shape[1], self.objective.mask_ratio):]
        target = patches_of(seen.images.float(), self.model.patch)
        if self.objective.norm_pix:
            spread, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (spread + NORM_EPS).sqrt()
        return (output.float() - target).square().mean(dim=-1).gather(1, masked).mean(dim=1)


class Inpaint(Task):
    """Mean absolute error over the pixels of the masked patches (Xie et al. 2022, section 3).  One uniform for each square of patches.

    Pathak et al. 2016 paint with a decoder of convolutions and a discriminator, which belong to convolutional encoders; SimMIM is the
    same task for a Transformer, and found that one layer and no discriminator represent no worse.
    """

    objective: Inpainting

    def __init__(self, model: Vit, objective: Inpainting) -> None:
        self.model, self.objective = model, objective
        self.side = model.image // objective.mask_patch             # squares on a side of the image
        self.num_draws = self.side**2

    def build(self) -> Backbone:
        return Inpainter(self.model)

    def mask(self, seen: Seen) -> Tensor:
        """(b, N) bool: The squares with the smallest uniforms are masked; of equal ones the first."""
        assert seen.draws is not None
        count = num_masked(self.num_draws, self.objective.mask_ratio)
        hidden = seen.draws.argsort(dim=1, stable=True)[:, :count]
        squares = torch.zeros_like(seen.draws, dtype=torch.bool).scatter_(1, hidden, True).unflatten(1, (self.side, self.side))
        patches = self.objective.mask_patch // self.model.patch
        return squares.repeat_interleave(patches, dim=1).repeat_interleave(patches, dim=2).flatten(1)

    def inputs(self, seen: Seen) -> tuple[Tensor, ...]:
        return seen.images, self.mask(seen)

    def losses(self, output: Tensor, seen: Seen) -> Tensor:
        """output (b, N, P P C)."""
        error = (output.float() - patches_of(seen.images.float(), self.model.patch)).abs().mean(dim=-1)
        mask = self.mask(seen)
        return torch.where(mask, error, 0.0).sum(dim=1) / mask.sum(dim=1)
