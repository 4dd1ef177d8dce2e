"""What happens to a batch of pixels on the device.  Every random choice arrives as a tensor; nothing is drawn here."""

from collections.abc import Sequence

import torch
from torch import Tensor


def apply(
    images: Tensor, flip: Tensor | None, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 images (B, S, S, C) -> normalised (B, C, S, S): mirrored where flip (B,) is true, then (x / 255 - mean) / std.

    mean, std: three numbers, R, G, B in 0..1; a one-channel image takes their averages.  flip None: none is mirrored.
    """
    x = images.permute(0, 3, 1, 2)
    if flip is not None:
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    channels = x.shape[1]
    centre, spread = (torch.tensor(values, dtype=torch.float32, device=x.device) for values in (mean, std))
    if channels == 1:
        centre, spread = centre.mean(0, keepdim=True), spread.mean(0, keepdim=True)
    scaled = (x.float() / 255 - centre[:, None, None]) / spread[:, None, None]
    return scaled.to(dtype).contiguous()
