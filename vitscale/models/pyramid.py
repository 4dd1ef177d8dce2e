"""Feature pyramids for detection and segmentation: from one backbone to maps at several strides."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vitscale.errors import RecipeError
from vitscale.models.backbone import Backbone
from vitscale.models.convnext import ConvNeXt, ConvNextBlock
from vitscale.models.swin import SwinBlock, SwinTransformer
from vitscale.models.vit import VisionTransformer
from vitscale.shapes.convnext import STEM

SCALES = (4.0, 2.0, 1.0, 0.5)       # of a ViT's patches, the finest map first: Li et al. 2022, section 3


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps (B, C, height, width)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """forward(images (B, C, height, width)) -> one map (B, channels[i], height / strides[i], width / strides[i]) for each level, rounded
    up, the finest first."""

    strides: tuple[float, ...]      # pixels
    channels: tuple[int, ...]
    backbone: Backbone


class SimplePyramid(FeaturePyramid):
    """ViTDet's simple feature pyramid (Li et al. 2022, Exploring plain Vision Transformer backbones, section 3).

    All levels are made of the last map of patches: transposed convolutions enlarge it, a pooling shrinks it; 1 x 1 and 3 x 3 convolutions
    with norms bring each to `channels`.  The paper's windowed attention for large images is the backbone's business (model.attention).
    """

    def __init__(self, backbone: VisionTransformer, channels: int = 256, scales: Sequence[float] = SCALES) -> None:
        """`scales`: of 4, 2, 1 and 0.5, falling.  Strides are the patch over the scale: 4, 8, 16, 32 for a patch of 16 pixels."""
        super().__init__()
        if not scales or any(scale not in SCALES for scale in scales) or list(scales) != sorted(set(scales), reverse=True):
            raise ValueError(f"scales are some of {SCALES}, falling, got {tuple(scales)}")
        self.backbone, self.channels = backbone, (channels,) * len(scales)
        self.strides = tuple(backbone.patch_embed.patch / scale for scale in scales)
        self.levels = nn.ModuleList(_level(backbone.width, channels, scale) for scale in scales)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        backbone = cast(VisionTransformer, self.backbone)
        tokens = backbone.forward_features(images, None, ("norm",))["norm"][:, backbone.before:]
        patches = tokens.transpose(1, 2).unflatten(2, backbone.patch_embed.grid(images))
        return tuple(level(patches) for level in self.levels)


def _level(width: int, channels: int, scale: float) -> nn.Sequential:
    if scale == 4:
        resize: list[nn.Module] = [nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2), nn.GELU(),
                                   nn.ConvTranspose2d(width // 2, width // 4, 2, 2)]
        width //= 4
    elif scale == 2:
        resize = [nn.ConvTranspose2d(width, width // 2, 2, 2)]
        width //= 2
    else:
        resize = [nn.MaxPool2d(2, ceil_mode=True)] if scale == 0.5 else []
    return nn.Sequential(*resize, nn.Conv2d(width, channels, 1, bias=False), ChannelNorm(channels),
                         nn.Conv2d(channels, channels, 3, padding=1, bias=False), ChannelNorm(channels))


class StagePyramid(FeaturePyramid):
    """The stages of a Swin or ConvNeXt as they are, each through a norm of its own (Liu et al. 2021 and 2022, their dense tasks)."""

    def __init__(self, backbone: SwinTransformer | ConvNeXt) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(backbone, SwinTransformer):
            first, self.names = backbone.patch_embed.patch, [f"layers.{number}" for number in range(len(backbone.layers))]
            self.channels = tuple(cast(SwinBlock, layer.blocks[0]).norm1.normalized_shape[0] for layer in backbone._stages)
        else:
            first, self.names = STEM, [f"stages.{number}" for number in range(len(backbone.stages))]
            self.channels = tuple(cast(ConvNextBlock, stage.blocks[0]).norm.normalized_shape[0] for stage in backbone._stages)
        self.strides = tuple(float(first * 2**number) for number in range(len(self.names)))
        self.norms = nn.ModuleList(ChannelNorm(channels) for channels in self.channels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.backbone.forward_features(images, None, self.names)
        return tuple(norm(found[name].permute(0, 3, 1, 2)) for norm, name in zip(self.norms, self.names, strict=True))


def build_pyramid(backbone: Backbone, channels: int = 256, scales: Sequence[float] = SCALES, seed: int = 0) -> FeaturePyramid:
    """The pyramid that suits a backbone: `channels` and `scales` are for plain Vision Transformers, whose maps have neither by nature.

    The backbone's numbers stay; what is new begins at He's initial values (He et al. 2015) drawn by the seed, and zeros.  Raises
    RecipeError for a backbone of another package.
    """
    if isinstance(backbone, VisionTransformer):
        pyramid: FeaturePyramid = SimplePyramid(backbone, channels, scales)
        generator = torch.Generator().manual_seed(seed)
        for module in cast(SimplePyramid, pyramid).levels.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return pyramid
    if not isinstance(backbone, SwinTransformer | ConvNeXt):
        raise RecipeError(f"a feature pyramid is made of model.family vit, deit, swin and convnext, not of a {type(backbone).__name__}")
    return StagePyramid(backbone)
