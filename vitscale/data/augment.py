"""What happens to a batch of pixels on the device.  Every random choice arrives as a tensor; nothing is drawn here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vitscale.data import native
from vitscale.data.mix import in_box
from vitscale.data.pixels import OPERATIONS
from vitscale.data.policy import Erasures, Operations

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Ops:
    """Operations of pixels.py on single images of a batch, in order: `parts` (operation, low, high) says which rows[low:high] go
    through it.  The host knows how many there are, so the device need not be asked."""

    parts: tuple[tuple[str, int, int], ...]
    rows: Tensor            # (R,) int64
    parameters: Tensor      # (R, 6) float64

    @classmethod
    def of(cls, wanted: Operations | None) -> "Ops | None":
        return cls(wanted.parts, torch.from_numpy(wanted.rows), torch.from_numpy(wanted.parameters)) if wanted else None


@dataclass(frozen=True)
class Erase:
    """Rectangles to erase, each in an image of its own."""

    rows: Tensor            # (E,) int64
    boxes: Tensor           # (E, 4) int64 top, left, bottom, right
    keys: Tensor            # (E,) int64
    noise: bool             # fill with normal noise, or with 0

    @classmethod
    def of(cls, wanted: Erasures) -> "Erase":
        return cls(torch.from_numpy(wanted.rows), torch.from_numpy(wanted.boxes), torch.from_numpy(wanted.keys), wanted.noise)


def apply(
    images: Tensor, flip: Tensor | None, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32,
    ops: Ops | None = None, erase: Erase | None = None,
) -> Tensor:
    """uint8 images (B, S, S, C) -> normalised (B, C, S, S): mirrored where flip (B,) is true, then `ops`, (x / 255 - mean) / std, `erase`.

    mean, std: three numbers, R, G, B in 0..1; a one-channel image takes their averages.  flip None: none is mirrored.
    """
    channels = images.shape[3]
    centre, spread = _constant(tuple(mean), images.device), _constant(tuple(std), images.device)
    if channels == 1:
        centre, spread = centre.mean(0, keepdim=True), spread.mean(0, keepdim=True)
    fill = (centre * 255).round().clamp(0, 255).to(torch.uint8)
    by = _by_native if native.available() and type(images) is Tensor and images.device.type == "cpu" else _by_torch
    scaled = by(images, flip, ops, centre, spread, fill)
    if erase is not None and len(erase.rows):
        erased = scaled[erase.rows]
        inside = in_box(erase.boxes, *erased.shape[2:])[:, None]
        filling = normal_noise(erase.keys, channels, *erased.shape[2:]) if erase.noise else torch.zeros_like(erased)
        scaled.index_copy_(0, erase.rows, torch.where(inside, filling, erased))
    return scaled.to(dtype).contiguous()


def _by_torch(images: Tensor, flip: Tensor | None, ops: Ops | None, centre: Tensor, spread: Tensor, fill: Tensor) -> Tensor:
    """All but erasing, on any device."""
    x = images.permute(0, 3, 1, 2)
    if flip is not None:
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    if ops is not None:
        x = x.clone(memory_format=torch.contiguous_format)
        for name, low, high in ops.parts:
            rows = ops.rows[low:high]
            x.index_copy_(0, rows, OPERATIONS[name](x[rows], ops.parameters[low:high], fill))
    return (x.float() / 255 - centre[:, None, None]) / spread[:, None, None]


def _by_native(images: Tensor, flip: Tensor | None, ops: Ops | None, centre: Tensor, spread: Tensor, fill: Tensor) -> Tensor:
    """The same on a processor, to the last bit, in a tenth of the time: since a byte becomes one of 256 numbers, these are made first."""
    count, height, width, channels = images.shape
    if flip is None:
        flip = torch.zeros(count, dtype=torch.bool)
    if ops is None:
        ops = Ops((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, dtype=torch.float64))
    scaled = torch.empty(count, channels, height, width)
    table = _by_torch(torch.arange(256, dtype=torch.uint8).expand(channels, -1).T[None, None], None, None, centre, spread, fill)
    native.augment(images.contiguous().numpy(), flip.contiguous().numpy(), ops.parts, ops.rows.numpy(), ops.parameters.numpy(),
                   fill.numpy(), table[0, :, 0].contiguous().numpy(), scaled.numpy())
    return scaled


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, since a tensor made of a tuple on a GPU is a copy that the host waits for."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def normal_noise(keys: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Standard normal numbers that follow from the keys (E,) alone, the same on every device.  -> (E, channels <= 4, height, width)

    SplitMix64 (Steele et al. 2014) counted over the pixels; each 16 bits of a word pick one of 65,536 quantiles, so |x| < 4.4.
    """
    pixel = torch.arange(1, height * width + 1, device=keys.device)
    word = keys[:, None] + pixel * _GOLDEN                              # modulo 2**64
    word = (word ^ (word >> 30 & (1 << 34) - 1)) * _FIRST
    word = (word ^ (word >> 27 & (1 << 37) - 1)) * _SECOND
    word = word ^ (word >> 31 & (1 << 33) - 1)
    pieces = torch.stack([word >> 16 * channel & 0xFFFF for channel in range(channels)], 1)
    return _quantiles(keys.device)[pieces].view(len(keys), channels, height, width)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """(65536,) float32"""
    from scipy.special import ndtri  # a ninth of a run's imports, and few recipes want it

    return torch.from_numpy(ndtri((torch.arange(65536, dtype=torch.float64).numpy() + 0.5) / 65536)).float().to(device)
