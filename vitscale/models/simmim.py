"""Masked patches told from the others by the Vision Transformer itself and one layer (Xie et al. 2022, SimMIM)."""

import torch
from torch import Tensor, nn

from vitscale.models.vit import VisionTransformer
from vitscale.recipe.schema import Vit
from vitscale.shapes.masked import encoder_section, num_pixels


class Inpainter(VisionTransformer):
    """A VisionTransformer without a head, whose weights are a classifier's, a token for what is masked and a layer that paints."""

    def __init__(self, model: Vit) -> None:
        """Raises RecipeError when the section contradicts itself."""
        super().__init__(encoder_section(model))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.decoder_pred = nn.Linear(self.width, num_pixels(model))

    def forward(self, images: Tensor, keep: Tensor | None, mask: Tensor) -> Tensor:  # type: ignore[override]
        """images (B, C, height, width), keep as VisionTransformer's, mask (B, N) bool -> pixels (B, N, P P C) of every patch.

        A masked patch's own pixels reach nothing.  Pixels lie row by row, channels last.
        """
        patches = hidden(self.patch_embed(images), mask, self.mask_token)
        return self.decoder_pred(self.encoded(patches, self.patch_embed.grid(images), keep)[:, self.before:])


def hidden(patches: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """Patch tokens (B, N, D) with the token (1, 1, D) in place of those that mask (B, N) hides."""
    return torch.where(mask[:, :, None], token.to(patches.dtype), patches)
