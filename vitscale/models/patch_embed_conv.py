"""Patches from a stack of convolutions: an early-convolution stem, and a small ResNet."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.models.patch_embed import Patches
from vitscale.shapes.vit import HYBRID_GROUPS, stem_widths


class ConvNorm(nn.Module):
    """A 3 x 3 convolution with stride 2, a norm over the whole image, ReLU."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, outgoing, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, outgoing)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(image)))


class ConvStemPatchEmbed(Patches):
    """Halves the image with 3 x 3 convolutions until a place is a patch, doubling channels to D, then 1 x 1 (Xiao et al. 2021, Early
    convolutions help transformers see better).

    Its BatchNorm is a GroupNorm of one group here, since samples must not depend on their batch.  The paper takes one block fewer
    besides: that is the recipe's depth.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(patch)
        widths = (channels, *stem_widths(patch, width))
        self.stem = nn.Sequential(*(ConvNorm(incoming, outgoing) for incoming, outgoing in pairwise(widths)))
        self.proj = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        self.grid(images)
        return self.proj(self.stem(images)).flatten(2).transpose(1, 2)


def same(image: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around an image such that a side of s places becomes one of s / stride, rounded up; if uneven, more below and to the right."""
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in image.shape[-2:])
    if not height and not width:
        return image
    return F.pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))


class StandardConv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 (Qiao et al. 2019, Weight standardization)."""

    def __init__(self, incoming: int, outgoing: int, kernel: int, stride: int = 1) -> None:
        super().__init__(incoming, outgoing, kernel, stride=stride, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = ((weight - mean) * (variance + 1e-8).rsqrt()).to(image.dtype)
        if self.stride[0] == 1:
            return F.conv2d(image, weight, padding=self.kernel_size[0] // 2)       # as same(), without a copy of the image
        return F.conv2d(same(image, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


class Stem(nn.Module):
    """A quarter of the image's side: 7 x 7 with stride 2, and the largest of 3 x 3 with stride 2 (He et al. 2016)."""

    def __init__(self, channels: int, outgoing: int) -> None:
        super().__init__()
        self.conv = StandardConv(channels, outgoing, 7, 2)
        self.norm = nn.GroupNorm(HYBRID_GROUPS, outgoing)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(same(F.relu(self.norm(self.conv(images))), 3, 2), 3, 2)      # zeros are never the largest but where all are


class ResNetDownsample(nn.Module):
    """The residual branch's way to other widths and sizes."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv = StandardConv(incoming, outgoing, 1, stride)
        self.norm = nn.GroupNorm(HYBRID_GROUPS, outgoing)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image))


class Bottleneck(nn.Module):
    """1 x 1 to a quarter of the width, 3 x 3, 1 x 1 back, added to what came in (He et al. 2016, figure 5)."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        narrow = outgoing // 4
        self.downsample = ResNetDownsample(incoming, outgoing, stride) if incoming != outgoing else nn.Identity()
        self.conv1, self.norm1 = StandardConv(incoming, narrow, 1), nn.GroupNorm(HYBRID_GROUPS, narrow)
        self.conv2, self.norm2 = StandardConv(narrow, narrow, 3, stride), nn.GroupNorm(HYBRID_GROUPS, narrow)
        self.conv3, self.norm3 = StandardConv(narrow, outgoing, 1), nn.GroupNorm(HYBRID_GROUPS, outgoing)

    def forward(self, image: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(image)))
        branch = F.relu(self.norm2(self.conv2(branch)))
        return F.relu(self.downsample(image) + self.norm3(self.conv3(branch)))


class ResNetStage(nn.Module):
    """Bottlenecks, of which the first changes width and size."""

    def __init__(self, incoming: int, outgoing: int, depth: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(
            Bottleneck(outgoing if number else incoming, outgoing, 1 if number else stride) for number in range(depth)))

    def forward(self, image: Tensor) -> Tensor:
        return self.blocks(image)


class ResNet(nn.Module):
    """The first stages of a ResNet with GroupNorm and weight standardisation in place of BatchNorm (Kolesnikov et al. 2020, BiT)."""

    def __init__(self, channels: int, width: int, depths: Sequence[int]) -> None:
        """`width` channels after the stem, 4 times as many in the first stage, twice as many in each that follows."""
        super().__init__()
        self.stem = Stem(channels, width)
        widths = (width, *(4 * width * 2**stage for stage in range(len(depths))))
        self.stages = nn.Sequential(*(
            ResNetStage(widths[stage], widths[stage + 1], depth, 2 if stage else 1) for stage, depth in enumerate(depths)))

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))


class HybridPatchEmbed(Patches):
    """The features of a ResNet, of which each place is a patch, through one linear layer (Dosovitskiy et al. 2021, section 3.1).

    Parameter names are timm's.
    """

    def __init__(self, channels: int, patch: int, width: int, stem: int, depths: Sequence[int]) -> None:
        super().__init__(patch)
        self.backbone = ResNet(channels, stem, depths)
        self.proj = nn.Conv2d(4 * stem * 2 ** (len(depths) - 1), width, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        self.grid(images)
        return self.proj(self.backbone(images)).flatten(2).transpose(1, 2)
