"""From an image to a row of patch tokens."""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Each P x P patch, flattened, through one linear layer (Dosovitskiy et al. 2021, equation 1), written as a convolution."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """images (B, C, height, width) -> patches down and across.  Raises ValueError when the patch does not divide the image."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {height} x {width} pixels are not divisible by the patch {self.patch}")
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, height, width) -> tokens (B, N, D), row by row."""
        self.grid(images)
        return self.proj(images).flatten(2).transpose(1, 2)
