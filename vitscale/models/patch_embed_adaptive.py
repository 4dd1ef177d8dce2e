"""Patches that lie where the image has something to show."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.models.patch_embed import Patches
from vitscale.shapes.vit import LOOK_WIDTH


class AdaptivePatchEmbed(Patches):
    """Deformable patches (Chen et al. 2021, DPT: Deformable patch-based transformer).

    A first look at each patch of the regular grid says where its box really lies: its centre moves by at most P on either axis, its sides
    go from P / 2 to 2 P (the paper bounds them otherwise).  P x P points spread over the box are read off the image bilinearly and go
    through one linear layer.  At first all boxes are the regular grid's, and so the tokens are PatchEmbed's.  Nothing is drawn at random;
    gradients reach the boxes through the interpolation.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(patch)
        self.look = nn.Conv2d(channels, LOOK_WIDTH, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(LOOK_WIDTH, eps=1e-6)
        self.boxes = nn.Linear(LOOK_WIDTH, 4)
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def where(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> the boxes (B, down, across, 4): centre down and across, height, width, in pixels, fp32."""
        grid = self.grid(images)
        moves = self.boxes(F.gelu(self.norm(self.look(images).permute(0, 2, 3, 1)))).float().tanh()
        centres = torch.stack(torch.meshgrid(*(torch.arange(side, device=images.device) + 0.5 for side in grid), indexing="ij"), dim=-1)
        return torch.cat([self.patch * (centres + moves[..., :2]), self.patch * (moves[..., 2:] * math.log(2)).exp()], dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        boxes, (height, width) = self.where(images), images.shape[-2:]
        places = (torch.arange(self.patch, device=images.device) + 0.5) / self.patch - 0.5           # of a box, -1/2 to 1/2
        down = boxes[..., 0, None] + boxes[..., 2, None] * places                                       # (B, down, across, P) in pixels
        across = boxes[..., 1, None] + boxes[..., 3, None] * places
        points = torch.stack([                                                                          # grid_sample wants x, y in -1..1
            (2 / width * across - 1)[:, :, None].expand(-1, -1, self.patch, -1, -1),                    # (B, down, P, across, P)
            (2 / height * down - 1).transpose(2, 3)[..., None].expand(-1, -1, -1, -1, self.patch),
        ], dim=-1).flatten(3, 4).flatten(1, 2)
        read = F.grid_sample(images.to(points.dtype), points, mode="bilinear", padding_mode="border", align_corners=False)
        return self.proj(read.to(images.dtype)).flatten(2).transpose(1, 2)
