"""The learning rate as a function of images seen.  Pure: knows no torch.

Counting images, not steps, gives one schedule for every global batch, and a partial last batch of an epoch advances it by its own share.
An update uses the value at the *end* of its step: `images` includes the batch of the update itself.  So the first update of a warm-up
has its first fraction (not 0, which would waste the batch), and the last update of a run has exactly `min_lr`.
"""

import math
from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.recipe import Duration, Optim
from vitscale.recipe.schedules import Now, NumberSchedule


def lr_at(images: float, *, optim: Optim, total: float, warmup: float, cooldown: float = 0, timescale: float = 0) -> float:
    """The learning rate once `images` images have been seen; all lengths are images.

    A linear warm-up from 0 to `optim.lr` over `warmup`, then by `optim.schedule`:
      cosine    half a cosine from lr to min_lr, warm-up's end to `total` (Loshchilov & Hutter 2017, eq. 5, one period)
      linear    a straight line from lr to min_lr over the same span
      rsqrt     lr * sqrt(s / (s + t)), t images after the warm-up, s `timescale`, times a linear `cooldown` at the end (Zhai et al. 2022,
                section 3.5 and appendix: an 'infinite' schedule of which any point can be cooled down); never under min_lr
      wsd       lr until `cooldown` before the end, then a straight line to min_lr (warm-up, stable, decay: Hu et al. 2024, section 4)
      constant  lr
    Past `total` the value of `total` stays.  Continuous everywhere.
    """
    peak, floor = optim.lr, optim.min_lr
    images = min(images, total)
    if images < warmup:
        return peak * images / warmup
    passed, span = images - warmup, total - warmup
    match optim.schedule:
        case "cosine":
            share = passed / span if span > 0 else 1.0
            return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))
        case "linear":
            share = passed / span if span > 0 else 1.0
            return floor + (peak - floor) * (1 - share)
        case "rsqrt":
            decayed = peak * math.sqrt(timescale / (timescale + passed)) if passed else peak
            return floor + max(decayed - floor, 0.0) * _left(images, total, cooldown)
        case "wsd":
            return floor + (peak - floor) * _left(images, total, cooldown)
        case "constant":
            return peak


def _left(images: float, total: float, cooldown: float) -> float:
    """What a linear cooldown leaves: 1 until `cooldown` images before `total`, 0 there."""
    return min(1.0, (total - images) / cooldown) if cooldown else 1.0


@dataclass(frozen=True)
class Schedule:
    """A recipe's schedule with every duration resolved into images, once."""

    optim: Optim
    total: int
    warmup: int
    cooldown: int
    timescale: int
    epoch: int | None = None        # images of one; None: an endless mixture
    global_batch: int = 1
    repeats: int = 1

    @classmethod
    def of(cls, optim: Optim, duration: Duration, num_samples: int | None, global_batch: int, repeats: int = 1) -> "Schedule":
        """`num_samples` is one epoch's (None: an endless mixture).  Raises RecipeError if warm-up and cooldown exceed the run."""

        def images(length: Duration | None) -> int:
            return length.images(num_samples, global_batch, repeats) if length else 0

        total, warmup, cooldown = images(duration), images(optim.warmup), images(optim.cooldown)
        if warmup + cooldown > total:
            raise RecipeError(f"optim.warmup: warm-up and cooldown take {warmup + cooldown} images, more than the {total} of the whole run")
        return cls(optim, total, warmup, cooldown, images(optim.timescale) or warmup, num_samples, global_batch, repeats)

    def now(self, images: int) -> Now:
        """What objectives read their schedules by, at the end of a step that brings the images seen to `images`."""
        return Now(images, self.total, self.epoch, self.global_batch, self.repeats)

    def weight_decay(self, images: int) -> float:
        """Of the same update: it stays, or goes by half a cosine to where it ends (Caron et al. 2021)."""
        start, end = self.optim.weight_decay, self.optim.weight_decay_end
        return start if end is None else self.now(images).value(NumberSchedule(start=start, end=end))

    def lr(self, images: int) -> float:
        """The learning rate of the update whose batch brings the images seen to `images`."""
        return lr_at(
            images, optim=self.optim, total=self.total, warmup=self.warmup, cooldown=self.cooldown, timescale=self.timescale,
        )
