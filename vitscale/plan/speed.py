"""How long a step takes, and what it waits for: computation, exchange between ranks, the loader, the storage."""

import math
from dataclasses import dataclass

from vitscale.plan.exchange import HOST_LINK, Exchange, exchange, uncounted
from vitscale.plan.fleet import Fleet
from vitscale.plan.memory import cached_anatomy
from vitscale.plan.roofline import BANDWIDTH, Operation, operations
from vitscale.recipe.axes import axes_of
from vitscale.recipe.schema import OPTIMIZERS, Recipe
from vitscale.recipe.views import view_kinds

VIEW_PIXEL_S = 18e-9        # of a core, for each pixel of an image's further views, cut from the same decoding: docs/data.md
IMAGES_PER_CORE = 865.0     # decoded, cropped and resized to 224 pixels in a second of one core: benchmarks/rows/data-crop.json
IMAGE_BYTES = 110_000       # of a stored image: ImageNet-1k's mean
STRAGGLING = 0.01           # of the computation that ranks wait for the slowest, for each doubling of nodes.  An assumption
HOST_UPDATE = 100e9         # bytes/s at which a node's processors update offloaded parameters.  An assumption


@dataclass(frozen=True)
class Supply:
    """What loader and storage can give; None: not known, and then not in the way."""

    images_per_core: float | None = None        # in all their views; None: by what was measured
    image_bytes: int = IMAGE_BYTES
    storage_bandwidth: float | None = None      # bytes/s that all nodes together can read

    def per_core(self, recipe: Recipe) -> float:
        """Images of which a core gives every view in a second."""
        first, *more = view_kinds(recipe)
        further = (first.count - 1) * first.image**2 + sum(one.count * one.image**2 for one in more)
        return self.images_per_core or 1 / (1 / IMAGES_PER_CORE + VIEW_PIXEL_S * further)


@dataclass(frozen=True)
class Pace:
    """Seconds of one optimizer step of the whole fleet."""

    operations: tuple[Operation, ...]   # for one image
    compute_s: float        # forward and backward of all micro-steps
    exchange_s: float       # what ranks send, hidden or not
    exposed_s: float        # what of it computation cannot hide, and waiting for the slowest rank
    optimizer_s: float
    loader_s: float         # that the nodes' cores take to decode a batch, beside the rest
    storage_s: float | None
    exchange: Exchange

    @property
    def device_s(self) -> float:
        """What the devices take."""
        return self.compute_s + self.exposed_s + self.optimizer_s

    @property
    def step_s(self) -> float:
        return max(self.device_s, self.loader_s, self.storage_s or 0.0)

    @property
    def bottleneck(self) -> str:
        """`storage`, `loader`, `exchange`, `memory bandwidth` or `matrix units`: what to better first."""
        if self.step_s == self.storage_s:
            return "storage"
        if self.step_s == self.loader_s:
            return "loader"
        by_memory = sum(one.seconds for one in self.operations if one.bound == "memory")
        by_compute = sum(one.seconds for one in self.operations if one.bound == "compute")
        share = self.compute_s / (by_memory + by_compute)
        parts = {"exchange": self.exposed_s, "memory bandwidth": by_memory * share + self.optimizer_s, "matrix units": by_compute * share}
        return max(parts, key=lambda name: parts[name])


def pace(recipe: Recipe, fleet: Fleet, micro_batch: int, micro_steps: int, supply: Supply, device_mfu: float | None = None) -> Pace | None:
    """None on a CPU, and where something is not known that the speed follows from, of the device or of an axis of the ranks.

    `device_mfu`: of one device that waits for nobody, measured or assumed, in place of the roofline's.
    Hidden behind the forward and backward passes is as much exchange as they take; a pass waits for its first block's parameters, and
    the step's end for what is sent last.  Raises RecipeError.
    """
    device, precision = fleet.device, recipe.parallel.precision
    if device is None or device.memory_bandwidth is None or set(fleet.unknown(precision)) - {"memory"}:
        return None
    parts, axes = cached_anatomy(recipe), axes_of(recipe.parallel, fleet.size, fleet.per_node)
    if uncounted(axes):
        return None
    found = tuple(operations(recipe, device, micro_batch, axes, micro_steps))
    forward = axes.own_part(micro_batch * sum(one.forward_s for one in found))
    backward = axes.own_part(micro_batch * sum(one.backward_s for one in found))
    if device_mfu is not None:
        peak = device.peak(precision) or 0.0
        whole = axes.own_part(micro_batch * parts.training_flops / (peak * device_mfu))
        forward, backward = whole * forward / (forward + backward), whole * backward / (forward + backward)
    sent = exchange(recipe, fleet, micro_batch, micro_steps)
    exposed = sent.forwards * (max(sent.forward - forward, 0) + sent.first) + micro_steps * sent.blocking + sent.after
    exposed += (micro_steps - 1) * max(sent.backward - backward, 0) + max(sent.backward + sent.last - backward, 0)
    exposed += STRAGGLING * math.log2(fleet.nodes) * micro_steps * (forward + backward)
    in_all = sent.forwards * (sent.forward + sent.first) + micro_steps * (sent.backward + sent.blocking) + sent.last + sent.after

    n = sum(parts.params.values())
    own = n / axes.copy_size
    moments = OPTIMIZERS[recipe.optim.name]
    # gradient read and scaled for clipping (3 x 4); read gradient, weight and moments, write weight and moments; an average besides
    update = own * (12 + 4 * (3 + 2 * moments) + (12 if recipe.keeps_average else 0)) / (BANDWIDTH * device.memory_bandwidth)
    if recipe.parallel.zero_offload:
        update = own * 8 / HOST_LINK + own * fleet.per_node * 4 * (3 + 2 * moments) / HOST_UPDATE

    images = recipe.global_batch
    assert fleet.cores is not None
    cores = fleet.nodes * min(fleet.cores, (recipe.data.workers or fleet.cores) * fleet.per_node)
    storage = None if supply.storage_bandwidth is None else images * supply.image_bytes / supply.storage_bandwidth
    decoding = images / (cores * supply.per_core(recipe))
    return Pace(found, micro_steps * (forward + backward), in_all, exposed, update, decoding, storage, sent)
