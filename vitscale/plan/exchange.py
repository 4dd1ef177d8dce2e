"""How long ranks take to tell each other parameters and gradients, by NVLink inside a node and by the network between nodes.

An all-gather of S bytes in total brings each rank the parts of all others, S (w - 1) / w, over its link, and each node the parts of all
other nodes, S (N - 1) / N, over its network; both go on at once, and the slower one counts (Thakur, Rabenseifner & Gropp 2005, section 4,
give the ring's cost).  A reduce-scatter is the same backwards, an all-reduce both, one after the other.
"""

import math
from dataclasses import dataclass, replace

from vitscale.plan.fleet import Fleet
from vitscale.plan.memory import cached_anatomy
from vitscale.recipe.axes import Axes, axes_of
from vitscale.recipe.schema import Recipe

_COUNTED = ("replicate", "shard", "tensor")     # axes of which it is known here what is exchanged along them
EFFICIENCY = 0.7        # of a link's or the network's bandwidth.  An assumption
HOP = 1e-6              # seconds that a ring's message takes from rank to rank inside a node.  An assumption
NETWORK_HOP = 5e-6      # and from node to node.  An assumption
HOST_LINK = 20e9        # bytes/s between a GPU and its host, for offloading.  An assumption: PCIe 4 x16 has 32e9


def gather_s(num_bytes: float, fleet: Fleet) -> float:
    """An all-gather, or a reduce-scatter, of `num_bytes` over all ranks of a fleet, in seconds."""
    device, size = fleet.device, fleet.size
    if size == 1 or device is None or not num_bytes:
        return 0.0
    link = num_bytes * (size - 1) / size / device.link_bandwidth if fleet.per_node > 1 and device.link_bandwidth else 0.0
    network = num_bytes * (fleet.nodes - 1) / fleet.nodes / fleet.network_bandwidth
    return max(link, network) / EFFICIENCY + NETWORK_HOP * (fleet.nodes - 1) + HOP * (size - fleet.nodes)


@dataclass(frozen=True)
class Exchange:
    """Seconds of one step: of a forward pass, of a backward pass, of the last backward pass besides, and after it.

    What stands in `forward`, `backward` and `last` goes on while the device computes; what a pass has to wait for before it can begin,
    or to end, is `first` of it.  Of `micro_steps` forward passes, the first `forwards` exchange something.
    """

    forwards: int = 0

    forward: float = 0.0
    backward: float = 0.0
    last: float = 0.0
    first: float = 0.0
    after: float = 0.0
    blocking: float = 0.0       # of a forward and backward pass, in the way of the computation: parallel.tensor
    bytes: float = 0.0          # that one rank sends in a step


def exchange(recipe: Recipe, fleet: Fleet, micro_batch: int, micro_steps: int) -> Exchange:
    """What the recipe's engine sends and when.  Raises RecipeError."""
    parallel, size = recipe.parallel, fleet.size
    if size == 1 or fleet.device is None:
        return Exchange()
    parts, axes = cached_anatomy(recipe), axes_of(parallel, size, fleet.per_node)
    n, element = sum(parts.params.values()), 2 if parallel.precision == "bf16" else 4
    blocks = [unit.params for unit in parts.units]
    part = (size - 1) / size
    if parallel.engine == "fsdp":
        return _fsdp(recipe, fleet, axes, micro_batch, micro_steps)
    if parallel.engine == "zero" and parallel.zero_stage == 3:      # reduces in every micro-step
        gathers = sum(gather_s(element * block, fleet) for block in blocks)
        scatters = sum(gather_s(4 * block, fleet) for block in blocks)
        outer = n - sum(blocks)
        return Exchange(micro_steps, forward=gathers, backward=gathers + scatters, first=gather_s(element * (outer + blocks[0]), fleet),
                        after=gather_s(4 * outer, fleet), bytes=part * micro_steps * (element * (n + sum(blocks)) + 4 * n))
    if parallel.engine == "zero":
        every = parallel.zero_stage == 2
        scatter = gather_s(4 * n, fleet)
        return Exchange(backward=scatter if every else 0.0, last=0.0 if every else scatter, after=gather_s(element * n, fleet),
                        bytes=part * (4 * n * (micro_steps if every else 1) + element * n))
    bucket = min(25 * 2**20, 4 * n)                 # torch's default: what is ready last has nothing left to hide behind
    return Exchange(last=2 * gather_s(4 * n - bucket, fleet), after=2 * gather_s(bucket, fleet), bytes=part * 8 * n)


def _fsdp(recipe: Recipe, fleet: Fleet, axes: Axes, micro_batch: int, micro_steps: int) -> Exchange:
    """Gathers along the axis `shard` forward and backward, or once a step; scatters gradients along it in the last micro-step, and adds up
    along `replicate` what each rank is then left with."""
    parts, element = cached_anatomy(recipe), 2 if recipe.parallel.precision == "bf16" else 4
    shard, replicas = along(fleet, axes, "shard"), along(fleet, axes, "replicate")
    blocks = [axes.own_part(unit.params) for unit in parts.units]
    outer = sum(parts.params.values()) - sum(unit.params for unit in parts.units) + (axes.shard - 1) * parts.one_row
    once = recipe.parallel.gather == "once"

    def reduce_s(numbers: float) -> float:
        return gather_s(4 * numbers, shard) + 2 * gather_s(4 * numbers / axes.shard, replicas)

    gathers, held = sum(gather_s(element * block, shard) for block in blocks), sum(blocks) + outer
    forwards = 1 if once else micro_steps
    gathered = held if once else micro_steps * (held + sum(blocks))
    sent = (axes.shard - 1) / axes.shard * (element * gathered + 4 * held)
    sent += 2 * (axes.replicate - 1) / axes.replicate * 4 * held / axes.shard
    return Exchange(forwards, forward=gathers, backward=0.0 if once else gathers, last=sum(reduce_s(block) for block in blocks),
                    first=gather_s(element * (outer + blocks[0]), shard), after=reduce_s(outer),
                    blocking=_tensor_s(recipe, fleet, axes, micro_batch), bytes=sent)


def uncounted(axes: Axes) -> tuple[str, ...]:
    """A sentence for each axis of which no formula here says how long its exchange takes."""
    return tuple(f"parallel.{name}: no formula says what is exchanged along it: speed, time and cost are not known, and memory is at most "
                 "what is shown; `vitscale bench step` measures" for name, size in axes.sizes.items() if size > 1 and name not in _COUNTED)


def along(fleet: Fleet, axes: Axes, name: str) -> Fleet:
    """The ranks that differ from the first along one axis alone, as nodes and ranks on each; other such groups share links with them."""
    names = list(axes.sizes)
    apart = math.prod(list(axes.sizes.values())[names.index(name) + 1:])     # from one of them to the next
    count = axes.sizes[name]
    near = min(max(fleet.per_node // apart, 1), count)
    return replace(fleet, nodes=-(-count // near), per_node=near)


def _tensor_s(recipe: Recipe, fleet: Fleet, axes: Axes, micro_batch: int) -> float:
    """Four sums over the ranks of a block's tokens (Shoeybi et al. 2019, section 3), inside a node."""
    parts, group = cached_anatomy(recipe), along(fleet, axes, "tensor")
    element = 2 if recipe.parallel.precision == "bf16" else 4
    return sum(4 * 2 * gather_s(element * micro_batch * unit.stream, group) for unit in parts.units)
