"""How long ranks take to tell each other parameters and gradients, by NVLink inside a node and by the network between nodes.

An all-gather of S bytes in total brings each rank the parts of all others, S (w - 1) / w, over its link, and each node the parts of all
other nodes, S (N - 1) / N, over its network; both go on at once, and the slower one counts (Thakur, Rabenseifner & Gropp 2005, section 4,
give the ring's cost).  A reduce-scatter is the same backwards, an all-reduce both, one after the other.
"""

from dataclasses import dataclass, replace

from vitscale.plan.fleet import Fleet
from vitscale.plan.memory import cached_anatomy
from vitscale.recipe.schema import Recipe

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
    or to end, is `first` of it.
    """

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
    parts = cached_anatomy(recipe.model, recipe.objective)
    n, element = sum(parts.params.values()), 2 if parallel.precision == "bf16" else 4
    blocks = [unit.params for unit in parts.units]
    part = (size - 1) / size
    if parallel.engine == "fsdp" or (parallel.engine == "zero" and parallel.zero_stage == 3):
        filled = (size // parallel.tensor - 1) * parts.one_row if parallel.engine == "fsdp" else 0
        outer = n - sum(blocks) + filled
        gathers = sum(gather_s(element * block, fleet) for block in blocks)
        scatters = sum(gather_s(4 * block, fleet) for block in blocks)
        every = parallel.engine == "zero"           # reduces in every micro-step; fsdp in the last one
        sent = part * (element * (n + filled + sum(blocks)) * micro_steps + 4 * (n + filled) * (micro_steps if every else 1))
        return Exchange(
            forward=gathers / parallel.tensor, backward=(gathers + (scatters if every else 0.0)) / parallel.tensor,
            last=0.0 if every else scatters / parallel.tensor, first=gather_s(element * (outer + blocks[0]), fleet),
            after=gather_s(4 * outer, fleet), blocking=_tensor_s(recipe, fleet, micro_batch), bytes=sent)
    if parallel.engine == "zero":
        every = parallel.zero_stage == 2
        scatter = gather_s(4 * n, fleet)
        return Exchange(backward=scatter if every else 0.0, last=0.0 if every else scatter, after=gather_s(element * n, fleet),
                        bytes=part * (4 * n * (micro_steps if every else 1) + element * n))
    bucket = min(25 * 2**20, 4 * n)                 # torch's default: what is ready last has nothing left to hide behind
    return Exchange(last=2 * gather_s(4 * n - bucket, fleet), after=2 * gather_s(bucket, fleet), bytes=part * 8 * n)


def _tensor_s(recipe: Recipe, fleet: Fleet, micro_batch: int) -> float:
    """Four sums over the ranks of a block's tokens (Shoeybi et al. 2019, section 3), inside a node."""
    if recipe.parallel.tensor == 1:
        return 0.0
    parts, group = cached_anatomy(recipe.model, recipe.objective), replace(fleet, nodes=1, per_node=recipe.parallel.tensor)
    element = 2 if recipe.parallel.precision == "bf16" else 4
    return sum(4 * 2 * gather_s(element * micro_batch * unit.stream, group) for unit in parts.units)
