"""Which patches of an image are hidden in blocks (BEiT, iBOT, DINOv2).  Pure numpy: every choice is a given uniform."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRIES, PATIENCE = 64, 10    # of blocks, at most; and how many one after the other may fail, which is the published codes' number
SMALLEST = 4                # patches of the smallest block: DINOv2's min_num_patches
ASPECT = 0.3                # height over width lies in 0.3..1 / 0.3


@dataclass(frozen=True)
class BlockMasks:
    """An image is masked with a probability, then a share of its patches between two, drawn uniformly (Zhou et al. 2022, section 4.1).

    DINOv2 gives exactly that probability's share of a batch masks, of shares spaced evenly; here each image draws its own, so that its mask
    does not depend on who stands beside it.  And here the share, rounded down to patches, is met exactly: what blocks leave over is filled
    up with single patches by chance, as in DINOv3, where the others let a few patches less be masked.
    """

    grid: tuple[int, int]                           # patches down and across
    probability: float = 0.5
    share: tuple[float, float] = (0.1, 0.5)

    @property
    def num_draws(self) -> int:
        """Uniforms that one mask takes: whether, how many; each try of a block (area, ratio, top, left); each patch's turn."""
        return 2 + 4 * TRIES + self.grid[0] * self.grid[1]

    def of(self, draws: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Uniforms (b, num_draws) in [0, 1) -> what is hidden (b, N)."""
        return np.stack([self._one(row) for row in np.asarray(draws, np.float64)])

    def _one(self, draws: NDArray[np.float64]) -> NDArray[np.bool_]:
        mask = np.zeros(self.grid, bool)
        if draws[0] >= self.probability:
            return mask.ravel()
        low, high = self.share
        left = int((low + draws[1] * (high - low)) * mask.size)     # rounded down, as DINOv2's
        failed = 0
        for one in draws[2:2 + 4 * TRIES].reshape(TRIES, 4).tolist():
            new = self._hide(mask, left, *one)
            left, failed = left - new, 0 if new else failed + 1
            if not left or failed == PATIENCE:
                break
        hidden = mask.ravel()
        free = np.flatnonzero(~hidden)
        hidden[free[draws[2 + 4 * TRIES:][free].argsort(kind="stable")[:left]]] = True
        return hidden

    @staticmethod
    def _hide(mask: NDArray[np.bool_], most: int, area: float, ratio: float, top: float, left: float) -> int:
        """Hide a rectangle if it has something new, and no more than `most`; -> how many patches are newly hidden."""
        height, width = mask.shape
        target, aspect = SMALLEST + area * (most - SMALLEST), ASPECT ** (1 - 2 * ratio)
        h, w = round(math.sqrt(max(target, 0.0) * aspect)), round(math.sqrt(max(target, 0.0) / aspect))
        if not (h < height and w < width):
            return 0
        y, x = min(int(top * (height - h + 1)), height - h), min(int(left * (width - w + 1)), width - w)    # fp32 rounds up to 1
        new = h * w - int(mask[y:y + h, x:x + w].sum())
        if not 0 < new <= most:
            return 0
        mask[y:y + h, x:x + w] = True
        return new
