"""How long one device computes on an image, operation by operation: what its matrix units or its memory allow, whichever is less.

The roofline model (Williams, Waterman & Patterson 2009): an operation takes the longer of its FLOPs at the peak and its bytes at the
bandwidth.  No operation reaches either; how near each kind comes is an assumption that stands below and in every plan.
"""

from dataclasses import dataclass
from typing import Literal

from vitscale.plan.hardware import Device
from vitscale.plan.memory import cached_anatomy
from vitscale.recipe.axes import ALONE, Axes
from vitscale.recipe.schema import Recipe

MATRIX = 0.5            # of the peak that layers' matrix products reach.  An assumption
ATTENTION = 0.3         # of the peak that fused attention reaches, forward and backward.  An assumption
BANDWIDTH = 0.75        # of the memory's bandwidth.  An assumption
FUSED = 0.5             # of the bytes of elementwise operations that are left when parallel.compile fuses them.  An assumption
BACKWARD = 2            # a product's gradient is two products (Kaplan et al. 2020, section 2.1); bytes grow alike
_WITHOUT_MATRIX_UNITS = ("convolution",)        # depthwise convolutions, whose sums are too short for them
_FUSED_ATTENTION = ("attention_product",)


@dataclass(frozen=True)
class Operation:
    """One component's part of a training step, for one image: forward, backward, and what recomputation repeats."""

    name: str
    flops: float
    bytes: float
    forward_s: float
    backward_s: float
    bound: Literal["compute", "memory"]

    @property
    def seconds(self) -> float:
        return self.forward_s + self.backward_s

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes if self.bytes else 0.0


def repeated(recipe: Recipe) -> tuple[float, float]:
    """How much of a forward pass of products, and of elementwise work, recomputation does again."""
    parallel = recipe.parallel
    if parallel.recompute == "blocks":
        return 1 / parallel.recompute_every, 1 / parallel.recompute_every
    return 0.0, 1.0 if parallel.recompute == "selective" else 0.0


def operations(recipe: Recipe, device: Device, micro_batch: int, axes: Axes = ALONE, micro_steps: int = 1) -> list[Operation]:
    """Every component, and the reading and writing of weights, whose bytes the images of a micro-batch share.  Raises RecipeError.

    Only of a device whose peak in the recipe's precision and memory bandwidth are known.  micro_steps: micro-batches of a step."""
    parts = cached_anatomy(recipe)
    element = 2 if recipe.parallel.precision == "bf16" else 4
    peak, bandwidth = device.peak(recipe.parallel.precision), device.memory_bandwidth
    assert peak is not None
    assert bandwidth is not None
    slow = device.fp32_flops or peak
    products, pointwise = repeated(recipe)
    found = []
    for name, numbers in parts.moved.items():
        flops, moved = parts.flops.get(name, 0), float(numbers * element)
        again = (pointwise if name == "elementwise" else products) if name not in ("patch_embed", "stem", "head", "pool") else 0.0
        if name == "elementwise" and recipe.parallel.compile:
            moved *= FUSED
        rate = ATTENTION * peak if name in _FUSED_ATTENTION else MATRIX * (slow if name in _WITHOUT_MATRIX_UNITS else peak)
        by_flops, by_bytes = flops / rate, moved / (BANDWIDTH * bandwidth)
        once = max(by_flops, by_bytes)
        if once:
            times = 1 + BACKWARD + again
            found.append(Operation(name, flops * times, moved * times, once, (BACKWARD + again) * once,
                                   "compute" if by_flops >= by_bytes else "memory"))
    num_bytes = element * axes.own_part(sum(parts.params.values())) / micro_batch     # read twice, and their gradients written
    each = num_bytes / (BANDWIDTH * bandwidth)
    for name, without in (("teacher", parts.surveyed), ("survey", parts.again if micro_steps > 1 else {})):
        if flops := sum(without.values()):
            found.append(Operation(name, flops, 0.0, flops / (MATRIX * peak), 0.0, "compute"))
    return [*found, Operation("weights", 0.0, 3 * num_bytes, each, 2 * each, "memory")]
