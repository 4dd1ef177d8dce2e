"""Masked autoencoding (He et al. 2022): an encoder of the visible patches alone, and a small decoder that paints the others."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vitscale.models.position import resample, sincos
from vitscale.models.vit import Block, VisionTransformer
from vitscale.recipe.check_objective import num_visible
from vitscale.recipe.objectives import Mae
from vitscale.recipe.schema import Vit
from vitscale.shapes.masked import decoder_section, encoder_section, num_pixels
from vitscale.shapes.vit import shape_of


class MaskedAutoencoder(VisionTransformer):
    """A VisionTransformer without a head, whose weights are a classifier's, and its decoder.  Parameter names are the paper's code's.

    forward_features() sees all patches, as whoever uses the encoder afterwards does.
    """

    decoder_pos_embed: Tensor

    def __init__(self, model: Vit, objective: Mae) -> None:
        """Raises RecipeError when a section contradicts itself."""
        super().__init__(encoder_section(model))
        decoder = decoder_section(model, objective)
        shape = shape_of(decoder)
        self.mask_ratio, self.decoder_width = objective.mask_ratio, shape.width
        self.decoder_embed = nn.Linear(self.width, shape.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("decoder_pos_embed", sincos(self.grid, shape.width), persistent=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder, shape, 0.0, model.norm_eps) for _ in range(shape.depth))
        self.decoder_norm = nn.LayerNorm(shape.width, eps=model.norm_eps)
        self.decoder_pred = nn.Linear(shape.width, num_pixels(model))

    def forward(self, images: Tensor, keep: Tensor | None, order: Tensor) -> Tensor:  # type: ignore[override]
        """images (B, C, height, width), keep as VisionTransformer's, order (B, N) int64 -> pixels (B, N, P P C) of every patch.

        `order` is a permutation of each image's patches, the visible ones first.  Pixels lie row by row, channels last.
        """
        new_grid = self.patch_embed.grid(images)
        visible = num_visible(order.shape[1], self.mask_ratio)
        tokens = self.embed(self.patch_embed(images), new_grid)
        before, patches = tokens[:, :self.before], tokens[:, self.before:]
        tokens = run_blocks(self.blocks, torch.cat([before, picked(patches, order[:, :visible])], dim=1), self.by_block(keep))
        return self.decoded(self.norm(tokens), order, new_grid)

    def decoded(self, tokens: Tensor, order: Tensor, new_grid: tuple[int, int]) -> Tensor:
        """Encoded tokens (B, before + visible, D) -> pixels (B, N, P P C), mask tokens standing where nothing was seen."""
        tokens = self.decoder_embed(tokens)
        masked = order.shape[1] + self.before - tokens.shape[1]
        mask_tokens = self.mask_token.expand(tokens.shape[0], masked, -1).to(tokens.dtype)
        patches = torch.cat([tokens[:, self.before:], mask_tokens], dim=1)
        patches = picked(patches, order.argsort(dim=1)) + resample(self.decoder_pos_embed, self.grid, new_grid).to(tokens.dtype)
        tokens = run_blocks(self.decoder_blocks, torch.cat([tokens[:, :self.before], patches], dim=1))
        return self.decoder_pred(self.decoder_norm(tokens)[:, self.before:])

    def units(self) -> Sequence[nn.Module]:
        """The encoder's blocks in order, then the decoder's."""
        return [*self.blocks, *self.decoder_blocks]

    def reset_buffers(self) -> None:
        super().reset_buffers()
        self.decoder_pos_embed.copy_(sincos(self.grid, self.decoder_width, device="cpu"))


def picked(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens (B, N, D), index (B, M) int64 -> (B, M, D)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, keep: Sequence[Tensor | None] | None = None) -> Tensor:
    """tokens (B, N, D) through blocks that know of no places; keep, one for each block, says which residual branches stay."""
    for block, masks in zip(blocks, keep or [None] * len(blocks), strict=True):
        tokens = cast(Tensor, block(tokens, masks))
    return tokens
