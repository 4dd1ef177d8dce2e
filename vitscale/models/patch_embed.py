"""From an image to a row of patch tokens: one linear layer, and its close relatives."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Patches(nn.Module):
    """What every patch embedding has: forward(images (B, C, height, width)) -> tokens (B, N, D), row by row; one for P x P pixels."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def grid(self, images: Tensor) -> tuple[int, int]:
        """images (B, C, height, width) -> patches down and across.  Raises ValueError when the patch does not divide the image."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {height} x {width} pixels are not divisible by the patch {self.patch}")
        return height // self.patch, width // self.patch


class PatchProjection(nn.Conv2d):
    """A convolution whose patches do not overlap.  On a GPU it is a matrix product, which saves 1.6 ms of a step of ViT-L/16 with 128
    images on an H200 (benchmarks/LOG.md); elsewhere it is torch's convolution."""

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> (B, D, rows, columns)."""
        if images.is_cuda:
            return product_of_patches(images, self.weight, self.bias)
        return super().forward(images)


def product_of_patches(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """images (B, C, height, width), weight (D, C, P, P) -> (B, D, rows, columns), which lies in memory as (B, rows, columns, D)."""
    patch = weight.shape[-1]
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    patches = images.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    kernel = weight.flatten(1)
    if over := -kernel.shape[1] % 8:        # tensor cores want rows of 16 bytes: 588 numbers of a patch of 14 are no multiple of 8
        patches, kernel = F.pad(patches, (0, over)), F.pad(kernel, (0, over))
    return F.linear(patches, kernel, bias).permute(0, 3, 1, 2)


class PatchEmbed(Patches):
    """Each P x P patch, flattened, through one linear layer (Dosovitskiy et al. 2021, equation 1), written as a convolution."""

    def __init__(self, channels: int, patch: int, width: int, bias: bool = True) -> None:
        super().__init__(patch)
        self.proj = PatchProjection(channels, width, kernel_size=patch, stride=patch, bias=bias)
        self.resized: Tensor | None = None

    def set_patch(self, patch: int) -> None:
        """Cut patches of another size from now on; the kernel that is learned stays as it is and is resampled (resample_kernel)."""
        own = self.proj.kernel_size[0]
        self.patch, self.resized = patch, None if patch == own else resize_inverse(own, patch)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        self.grid(images)
        if self.resized is None:
            found = self.proj(images)
        else:
            kernel = resampled(self.proj.weight, self.resized).to(images.dtype)
            found = F.conv2d(images, kernel, self.proj.bias, stride=self.patch)
        return found.flatten(2).transpose(1, 2)


class OverlappingPatchEmbed(Patches):
    """A convolution with a kernel of 2 P - 1 and a stride of P, then a norm (Wang et al. 2022, PVT v2)."""

    def __init__(self, channels: int, patch: int, width: int, eps: float = 1e-6) -> None:
        super().__init__(patch)
        self.proj = nn.Conv2d(channels, width, kernel_size=2 * patch - 1, stride=patch, padding=patch - 1)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        self.grid(images)
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class PositionalPatchEmbed(Patches):
    """Patches that learn where they are from their neighbours: a depthwise 3 x 3 convolution is added to them, whose zeros around the
    image tell of its edges (Chu et al. 2021, Conditional positional encodings).

    The paper has it after the first block, this before it.  It goes with position `none`, or besides another.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(patch)
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.pos = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        self.grid(images)
        found = self.proj(images)
        return (found + self.pos(found)).flatten(2).transpose(1, 2)


def resample_kernel(weight: Tensor, new: int) -> Tensor:
    """A patch projection (D, C, P, P) -> (D, C, new, new), differentiable (Beyer et al. 2023, FlexiViT: PI-resize).

    Of all kernels it is the one whose products with resized patches come closest, in least squares over white noise, to the old kernel's
    products with the patches themselves; where patches grow they are equal.
    """
    old = weight.shape[-1]
    return weight if old == new else resampled(weight, resize_inverse(old, new)).to(weight.dtype)


def resampled(weight: Tensor, inverse: Tensor) -> Tensor:
    """A kernel (D, C, P, P) times resize_inverse's matrix, in fp32 at least."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    side = round(inverse.shape[1] ** 0.5)
    return (weight.to(wide).flatten(2) @ inverse.to(weight.device, wide)).unflatten(-1, (side, side))


def resize_inverse(old: int, new: int) -> Tensor:
    """The pseudo-inverse (old^2, new^2), fp64, of what resizing patches of `old` pixels to `new` does: bilinear, and antialiased."""
    unit = torch.eye(old**2, dtype=torch.float64, device="cpu").unflatten(1, (1, old, old))
    resize = F.interpolate(unit, size=(new, new), mode="bilinear", antialias=True).flatten(1)      # (old^2, new^2): row by pixel
    return torch.linalg.pinv(resize).T
