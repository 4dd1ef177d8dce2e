"""Image operations on a batch, each image with its own parameter.  PIL's arithmetic on 8 bits, so that PIL is the oracle of every one.

Every operation takes x (m, C, S, S) uint8, C 1 or 3, and parameters on the same device, and gives (m, C, S, S) uint8.  Sums are of whole
numbers and nothing depends on the other images of the batch, so an image comes out the same in any batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]      # x (m, C, S, S), parameters (m, 6) float64, fill (C,) uint8 -> like x


def luma(x: Tensor) -> Tensor:
    """Brightness by ITU-R 601-2 in whole numbers.  (m, C, S, S) -> (m, 1, S, S) int32"""
    x = x.int()
    if x.shape[1] == 1:
        return x
    return (x[:, :1] * 19595 + x[:, 1:2] * 38470 + x[:, 2:] * 7471 + 0x8000) >> 16


def blend(low: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """low + factor (x - low), cut off to 0..255 and to whole numbers: factor (m,) 0 gives `low`, 1 gives x, more goes beyond it."""
    low = low.float()
    return (low + factor.float().view(-1, 1, 1, 1) * (x.float() - low)).clamp(0, 255).to(torch.uint8)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """From black."""
    return blend(torch.zeros((), device=x.device), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """From the grey of the image's mean brightness."""
    total = luma(x).sum(dim=(1, 2, 3), keepdim=True)            # whole numbers: in any order the same
    return blend((total.double() / (x.shape[2] * x.shape[3]) + 0.5).floor(), x, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """From the image in greys."""
    return blend(luma(x), x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """From the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, whose outermost pixels stay."""
    low = x.clone()
    if min(x.shape[2:]) > 2:
        rows = x.short()
        rows = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
        nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        low[:, :, 1:-1, 1:-1] = ((2 * (nine + 4 * x[:, :, 1:-1, 1:-1].short()) + 13) // 26).to(torch.uint8)
    return blend(low, x, factor)


def grey(x: Tensor) -> Tensor:
    return luma(x).to(torch.uint8).expand_as(x)


def invert(x: Tensor) -> Tensor:
    return 255 - x


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at least the threshold (m,), 0 to 256."""
    return torch.where(x < threshold.short().view(-1, 1, 1, 1), x, 255 - x)


def solarize_add(x: Tensor, addend: Tensor) -> Tensor:
    """Add to what is under 128, up to 255."""
    return torch.where(x < 128, (x.short() + addend.short().view(-1, 1, 1, 1)).clamp(max=255).to(torch.uint8), x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits (m,) of each channel, 0 to 8."""
    return x & (256 - 2 ** (8 - bits.int())).to(torch.uint8).view(-1, 1, 1, 1)


def autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel's range to 0..255; a channel of a single value stays."""
    flat = x.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    levels = torch.arange(256, dtype=torch.float64, device=x.device)
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1)        # number / tensor would round twice
    stretched = (levels * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return _look_up(x, torch.where(high > low, stretched, levels.to(torch.uint8)))


def equalize(x: Tensor) -> Tensor:
    """Give each channel a histogram as flat as a table of 256 entries can (the same count of pixels under every level)."""
    flat = x.flatten(2).long()
    histogram = torch.zeros((*flat.shape[:2], 256), dtype=torch.int32, device=x.device)
    histogram.scatter_add_(2, flat, torch.ones((), dtype=torch.int32, device=x.device).expand_as(flat))
    last = histogram.gather(2, flat.amax(2, keepdim=True))              # count of the brightest level
    step = (flat.shape[2] - last) // 255
    below = histogram.cumsum(2) - histogram
    levels = torch.arange(256, device=x.device)
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(x, torch.where(step > 0, table, levels).to(torch.uint8))


def _look_up(x: Tensor, table: Tensor) -> Tensor:
    """Each value through its channel's table (m, C, 256)."""
    return table.gather(2, x.flatten(2).long()).view_as(x)


def affine(x: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Move pixels: the one at (column, row) comes from matrix (m, 6) times (column, row, 1), centres at halves; bilinear, cut off to
    whole numbers.  What comes from outside the image is `fill` (C,)."""
    m, channels, height, width = x.shape
    row, column = (torch.arange(count, dtype=torch.float64, device=x.device) + 0.5 for count in (height, width))
    a, b, c, d, e, f = (number[:, None, None] for number in matrix.double().unbind(1))
    across, down = a * column + b * row[:, None] + c, d * column + e * row[:, None] + f         # (m, S, S)
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    across, down = across - 0.5, down - 0.5
    left, top = across.floor(), down.floor()
    flat = x.flatten(2)

    def corner(rows: Tensor, columns: Tensor) -> Tensor:
        place = rows.long().clamp(0, height - 1) * width + columns.long().clamp(0, width - 1)
        return flat.gather(2, place.view(m, 1, -1).expand(-1, channels, -1)).view_as(x).float()

    def between(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
        return low + (high - low) * share.float()[:, None]

    upper, lower = (between(corner(rows, left), corner(rows, left + 1), across - left) for rows in (top, top + 1))
    moved = between(upper, lower, down - top).to(torch.uint8)
    return torch.where(inside[:, None], moved, fill.view(1, -1, 1, 1))


def blur(x: Tensor, weights: Tensor) -> Tensor:
    """PIL's Gaussian blur: three box blurs along rows, then three along columns; weights (m, 3) of the centre and of the pixels one and two
    away on either side, in parts of 2**24; edges are repeated; rounded to whole numbers each time."""
    centre, near, far = (weight.view(-1, 1, 1, 1) for weight in weights.int().unbind(1))
    for _ in range(2):
        for _ in range(3):
            wide = torch.cat([x[..., :1], x[..., :1], x, x[..., -1:], x[..., -1:]], -1).int()
            ones, twos = wide[..., 1:-3] + wide[..., 3:-1], wide[..., :-4] + wide[..., 4:]
            total = centre * wide[..., 2:-2] + near * ones + far * twos + 2**23         # modulo 2**32, which is all that it can reach
            x = ((total >> 24) & 255).to(torch.uint8)
        x = x.transpose(2, 3)
    return x.contiguous()


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by shift (m,) of 256 parts, by way of HSV in 8 bits (Smith 1978).  Greys have no hue."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.float().unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = high - low
    rc, gc, bc = ((high - one) / spread.clamp(min=1) for one in (r, g, b))
    turn = torch.where(r == high, (bc - gc).double(), torch.where(g == high, 2.0 + rc.double() - bc, 4.0 + gc.double() - rc)).float()
    # in single and in double precision just where PIL is: a step of the hue is several steps of a colour
    h = (((turn.double() / 6 + 1) % 1).float().double() * 255).floor() * (spread > 0)
    h = (h.float() + shift.float().view(-1, 1, 1)) % 256
    s = ((spread / high.clamp(min=1)).double() * 255).floor().float() / 255
    sixth = (h.double() * 6 / 255).float()
    part = sixth.floor()
    rest = sixth - part
    p, q, t = ((high * (1 - s * share) + 0.5).floor() for share in (torch.ones_like(rest), rest, 1 - rest))
    v, part = high, part % 6
    order = ((v, q, p, p, t, v), (t, v, v, q, p, p), (p, p, t, v, v, q))        # red, green, blue in each sixth of the circle
    planes = []
    for choices in order:
        plane = choices[5]
        for number, choice in enumerate(choices[:5]):
            plane = torch.where(part == number, choice, plane)
        planes.append(plane)
    return torch.stack(planes, 1).clamp(0, 255).to(torch.uint8)


OPERATIONS: dict[str, Operation] = {
    "brightness": lambda x, given, fill: brightness(x, given[:, 0]),
    "contrast": lambda x, given, fill: contrast(x, given[:, 0]),
    "saturation": lambda x, given, fill: saturation(x, given[:, 0]),
    "sharpness": lambda x, given, fill: sharpness(x, given[:, 0]),
    "hue": lambda x, given, fill: hue(x, given[:, 0]),
    "grey": lambda x, given, fill: grey(x),
    "invert": lambda x, given, fill: invert(x),
    "solarize": lambda x, given, fill: solarize(x, given[:, 0]),
    "solarize_add": lambda x, given, fill: solarize_add(x, given[:, 0]),
    "posterize": lambda x, given, fill: posterize(x, given[:, 0]),
    "autocontrast": lambda x, given, fill: autocontrast(x),
    "equalize": lambda x, given, fill: equalize(x),
    "affine": affine,
    "blur": lambda x, given, fill: blur(x, given[:, :3]),
}
