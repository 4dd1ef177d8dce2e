"""The whole plan of a recipe on hardware: does it fit, how fast, how long, what does it cost, what holds it up, what would be better.

The fields of these classes are the keys of `vitscale plan --json`, which docs/planner.md lists; they stay.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from vitscale.errors import RecipeError
from vitscale.plan import exchange, memory, roofline, speed
from vitscale.plan.cost import MTBF_HOURS, Checkpoints, Cost, checkpoints, cost
from vitscale.plan.fleet import Fleet, close_to
from vitscale.plan.hardware import DEVICES
from vitscale.plan.measured import Measured, check_measured
from vitscale.plan.memory import USABLE, cached_anatomy
from vitscale.plan.search import Way, shares, way, ways
from vitscale.plan.seed import Growth, growth
from vitscale.plan.speed import Pace, Supply
from vitscale.recipe.axes import axes_of
from vitscale.recipe.check import contradictions
from vitscale.recipe.schema import Recipe
from vitscale.recipe.views import num_values
from vitscale.shapes.tensor import check_tensor

MOST_GPUS = 1024        # of the scaling tables
WORTH = 0.03            # of the time that a proposal must save to be made to a recipe that fits


@dataclass(frozen=True)
class Assumptions:
    """What a recipe does not say."""

    price: float | None = None              # of a GPU-hour, in any currency
    mfu: float | None = None                # of one GPU that waits for nobody
    measured: Measured | None = None        # the same, measured; wins over `mfu`
    supply: Supply = field(default_factory=Supply)
    mtbf_hours: float = MTBF_HOURS          # mean time between failures of one GPU


@dataclass(frozen=True)
class Hardware:
    name: str
    nodes: int
    gpus_per_node: int
    gpus: int
    peak_flops: float | None        # of one GPU in the recipe's precision
    memory_bytes: int | None
    memory_bandwidth: float | None  # bytes/s
    link_bandwidth: float | None    # bytes/s inside a node, each way
    network_bandwidth: float | None     # bytes/s of a node, each way
    cores_per_node: int | None
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Parameters:
    total: int
    by_component: dict[str, int]


@dataclass(frozen=True)
class Flops:
    per_image: int                  # forward and backward
    forward_per_image: int
    by_component: dict[str, int]    # of the forward pass
    run: float | None               # of all images; None: the recipe does not say how many


@dataclass(frozen=True)
class PlannedBatch:
    global_batch: int
    per_gpu: int
    micro_batch: int
    micro_steps: int
    origin: Literal["recipe", "planned"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU."""

    peak_bytes: int
    usable_bytes: int | None
    fits: bool | None
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    attention: int
    communication: int
    loader: int
    context: int
    host_bytes_per_node: int        # decoded images that wait, and an offloaded optimizer


@dataclass(frozen=True)
class Time:
    """None: not known."""

    images: int | None              # of the whole run
    steps: int | None
    images_per_second: float | None
    step_seconds: float | None
    seconds: float | None
    days: float | None
    mfu: float | None               # 0..1, of the whole fleet, waiting included
    basis: Literal["assumed", "measured", "unknown"]


@dataclass(frozen=True)
class StepParts:
    """Seconds of one optimizer step."""

    compute: float
    exchange: float
    exchange_exposed: float
    optimizer: float
    loader: float
    storage: float | None


@dataclass(frozen=True)
class Demand:
    """What the loader and the storage must give."""

    images_per_second_per_node: float
    loader_images_per_second_per_node: float
    cores_needed_per_node: float
    storage_bytes_per_second: float
    data_bytes: int | None          # of the data set once


@dataclass(frozen=True)
class Limit:
    name: str
    sentence: str


@dataclass(frozen=True)
class Row:
    """One number of GPUs."""

    gpus: int
    nodes: int
    global_batch: int
    micro_batch: int
    images_per_second: float
    days: float | None
    efficiency: float       # images/s of a GPU against those of the first row
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class Scaling:
    strong: tuple[Row, ...]     # the recipe's batch shared out among more GPUs
    weak: tuple[Row, ...]       # the same share of a GPU, so a larger batch: another recipe


@dataclass(frozen=True)
class Alternative:
    changes: dict[str, str | int | bool | None]
    micro_batch: int
    images_per_second: float
    days: float | None
    peak_bytes: int


@dataclass(frozen=True)
class Exact:
    """What torch's memory tracker says (`--exact`)."""

    peak_bytes: int         # with memory.context, which no tensor shows
    difference: float       # of memory.peak_bytes from it, as a share of it
    seconds: float          # that tracking took


@dataclass(frozen=True)
class Plan:
    recipe: str
    hardware: Hardware
    parameters: Parameters
    flops: Flops
    growth: Growth
    batch: PlannedBatch
    memory: MemoryPlan
    time: Time
    step: StepParts | None
    operations: tuple[roofline.Operation, ...]      # of one image
    demand: Demand | None
    bottleneck: Limit | None
    scaling: Scaling | None
    cost: Cost
    checkpoint: Checkpoints
    alternatives: tuple[Alternative, ...]       # that fit, the fastest first
    proposal: Alternative | None                # worth changing the recipe for; None: it is well as it is, or nothing fits
    least_gpus: int | None                      # where nothing fits: the number that would do, of whole nodes
    assumed: tuple[str, ...]
    measured: tuple[str, ...]
    unknown: tuple[str, ...]                    # what of the hardware is not known, and what therefore stands at null
    exact: Exact | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values under stable keys."""
        return {"schema": 1} | _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def run_images(recipe: Recipe) -> int | None:
    """Images of the whole run; None where it counts in epochs of a number of samples that the recipe does not declare."""
    try:
        return recipe.duration.images(recipe.data.num_samples, recipe.global_batch, recipe.data.repeats)
    except ValueError:
        return None


def plan_run(recipe: Recipe, fleet: Fleet, assumptions: Assumptions | None = None, search: bool = True) -> Plan:
    """`search`: look for better ways and make scaling tables too, some hundred estimates; without, a millisecond.

    Raises RecipeError when recipe and fleet do not go together; that it does not fit is no error but `memory.fits`.
    """
    given = assumptions or Assumptions()
    check_tensor(recipe)
    if given.measured is not None:
        check_measured(given.measured, fleet, recipe.parallel.precision)
    mfu = given.measured.mfu if given.measured is not None else given.mfu
    found = way(recipe, fleet, given.supply, mfu)
    parts = cached_anatomy(recipe)
    time = _time(recipe, fleet, found.pace, given)
    others = ways(recipe, fleet, given.supply, mfu) if search else []
    return Plan(
        recipe=recipe.name, hardware=_hardware(recipe, fleet),
        parameters=Parameters(sum(parts.params.values()), dict(parts.params)),
        flops=Flops(parts.training_flops, sum(parts.flops.values()), dict(parts.flops), parts.run_flops(time.images)),
        growth=growth(recipe),
        batch=PlannedBatch(recipe.global_batch, shares(recipe, fleet), found.micro_batch, found.micro_steps,
                    "planned" if recipe.micro_batch is None else "recipe"),
        memory=_memory(recipe, fleet, found), time=time, step=_step(found.pace),
        operations=found.pace.operations if found.pace else (),
        demand=_demand(recipe, fleet, found.pace, given.supply), bottleneck=_bottleneck(recipe, fleet, found.pace),
        scaling=_scaling(recipe, fleet, given.supply, mfu) if search and found.pace else None,
        cost=cost(fleet, time.seconds, given.price), checkpoint=checkpoints(recipe, fleet, time.step_seconds, given.mtbf_hours),
        alternatives=tuple(_alternative(one, time.steps) for one in _distinct(others)),
        proposal=_proposal(found, others, time.steps), least_gpus=_least(recipe, fleet, given.supply, found, others) if search else None,
        assumed=_assumed(recipe, fleet, given, found), measured=_measured(given), unknown=_unknown(recipe, fleet),
    )


def _hardware(recipe: Recipe, fleet: Fleet) -> Hardware:
    device, host = fleet.device, fleet.host
    if device is None or host is None:
        return Hardware(fleet.name, fleet.nodes, fleet.per_node, fleet.size, None, None, None, None, None, None, ())
    peak = device.peak(recipe.parallel.precision)
    return Hardware(fleet.name, fleet.nodes, fleet.per_node, fleet.size, peak, device.memory_bytes, device.memory_bandwidth,
                    device.link_bandwidth, fleet.network_bandwidth, fleet.cores, (device.source, host.source))


def _memory(recipe: Recipe, fleet: Fleet, found: Way) -> MemoryPlan:
    one = found.memory
    waiting = max(recipe.data.prefetch, found.micro_steps) * found.micro_batch * num_values(recipe)
    offloaded = 0
    if recipe.parallel.zero_offload:        # moments, masters, gradients
        offloaded = 16 * sum(cached_anatomy(recipe).params.values()) // fleet.nodes
    usable = int(USABLE * fleet.device.memory_bytes) if fleet.device and fleet.device.memory_bytes else None
    parts = {part.name: getattr(one, part.name) for part in fields(one)}
    return MemoryPlan(peak_bytes=one.total, usable_bytes=usable, fits=found.fits, **parts,
                      host_bytes_per_node=fleet.per_node * waiting + offloaded)


def _time(recipe: Recipe, fleet: Fleet, found: Pace | None, given: Assumptions) -> Time:
    images = run_images(recipe)
    steps = None if images is None else -(-images // recipe.global_batch)
    peak = fleet.device.peak(recipe.parallel.precision) if fleet.device else None
    if found is None or peak is None:
        return Time(images, steps, None, None, None, None, None, "unknown")
    rate = recipe.global_batch / found.step_s
    seconds = None if images is None else images / rate
    per_image = cached_anatomy(recipe).training_flops
    return Time(images, steps, rate, found.step_s, seconds, None if seconds is None else seconds / 86400,
                rate * per_image / (fleet.size * peak), "measured" if given.measured else "assumed")


def _step(found: Pace | None) -> StepParts | None:
    if found is None:
        return None
    return StepParts(found.compute_s, found.exchange_s, found.exposed_s, found.optimizer_s, found.loader_s, found.storage_s)


def _demand(recipe: Recipe, fleet: Fleet, found: Pace | None, supply: Supply) -> Demand | None:
    if found is None or fleet.cores is None:
        return None
    wanted = recipe.global_batch / found.device_s / fleet.nodes
    samples = recipe.data.num_samples or sum(one.num_samples or 0 for one in recipe.data.mix) or None
    return Demand(wanted, recipe.global_batch / found.loader_s / fleet.nodes, wanted / supply.per_core(recipe),
                  recipe.global_batch / found.step_s * supply.image_bytes, None if samples is None else samples * supply.image_bytes)


def _bottleneck(recipe: Recipe, fleet: Fleet, found: Pace | None) -> Limit | None:
    if found is None:
        return None
    name = found.bottleneck
    exposed = found.exposed_s / found.device_s
    return Limit(name, {
        "storage": "the storage reads fewer bytes a second than the GPUs could take",
        "loader": f"the {fleet.cores} cores of a node decode fewer images than its GPUs could take: more cores, or smaller stored images "
                  "(vitscale data pack --resize)",
        "exchange": f"GPUs wait for each other for {exposed:.0%} of a step: fewer nodes, a larger batch, or less recomputation and a "
                    "larger micro-batch",
        "memory bandwidth": "reading and writing numbers, not multiplying them: "
                            f"{'parallel.compile=true fuses elementwise work' if _may_compile(recipe) else 'the model is narrow'}",
        "matrix units": "the matrix units multiply most of the time, which is what they are paid for",
    }[name])


def _may_compile(recipe: Recipe) -> bool:
    """Whether it does not yet, and the recipe check lets it."""
    compiled = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"compile": True})})
    return not recipe.parallel.compile and not contradictions(compiled)


def _distinct(others: Sequence[Way], most: int = 6) -> list[Way]:
    """Of each engine and stage the fastest, at most so many."""
    seen: dict[tuple[str, int, bool], Way] = {}
    for one in others:
        parallel = one.recipe.parallel
        seen.setdefault((parallel.engine, parallel.zero_stage if parallel.engine == "zero" else 0, parallel.zero_offload), one)
    return list(seen.values())[:most]


def _alternative(one: Way, steps: int | None) -> Alternative:
    assert one.pace is not None
    return Alternative(one.changes, one.micro_batch, one.recipe.global_batch / one.pace.step_s,
                       None if steps is None else steps * one.pace.step_s / 86400, one.memory.total)


def _proposal(found: Way, others: Sequence[Way], steps: int | None) -> Alternative | None:
    if not others or found.pace is None:
        return None
    best = others[0]
    assert best.pace is not None
    if found.fits and best.pace.step_s > (1 - WORTH) * found.pace.step_s:
        return None
    return _alternative(best, steps) if best.changes else None


def _least(recipe: Recipe, fleet: Fleet, supply: Supply, found: Way, others: Sequence[Way]) -> int | None:
    if found.fits is not False or others or found.pace is None:
        return None
    for size in _sizes(fleet):
        if size.size > fleet.size:
            try:
                if ways(recipe, size, supply):
                    return size.size
            except RecipeError:     # more ranks than samples
                return None
    return None


def _sizes(fleet: Fleet) -> list[Fleet]:
    """The fleet, and smaller and larger ones: parts of a node where it is one, then nodes, doubling."""
    found = {fleet.size: fleet}
    per_node = fleet.per_node
    if fleet.nodes == 1 and fleet.host is not None:
        while per_node < fleet.host.devices:
            found.setdefault(per_node, replace(fleet, nodes=1, per_node=per_node))
            per_node = min(2 * per_node, fleet.host.devices)
    nodes = 1
    while nodes * per_node <= MOST_GPUS:
        found.setdefault(nodes * per_node, replace(fleet, nodes=nodes, per_node=per_node))
        nodes *= 2
    return [found[size] for size in sorted(found)]


def _scaling(recipe: Recipe, fleet: Fleet, supply: Supply, mfu: float | None) -> Scaling:
    images = run_images(recipe)
    share = shares(recipe, fleet)
    strong: list[Row] = []
    weak: list[Row] = []
    for size in _sizes(fleet):
        try:
            parts = axes_of(recipe.parallel, size.size, size.per_node).data_size
        except RecipeError:             # no whole groups of ranks
            continue
        grown = recipe.model_copy(update={"global_batch": share * parts})
        for rows, one in ((strong, recipe), (weak, grown)):
            try:
                found = way(one, size, supply, mfu)
            except RecipeError:         # more ranks than samples of a batch
                continue
            if found.pace is None:      # how fast the link between GPUs is, a single one does not tell
                continue
            rate = one.global_batch / found.pace.step_s
            first = rows[0].images_per_second / rows[0].gpus if rows else rate / size.size
            rows.append(Row(size.size, size.nodes, one.global_batch, found.micro_batch, rate,
                            None if images is None else images / rate / 86400, rate / size.size / first, found.memory.total,
                            bool(found.fits)))
    return Scaling(tuple(strong), tuple(weak))


def _unknown(recipe: Recipe, fleet: Fleet) -> tuple[str, ...]:
    precision = recipe.parallel.precision
    missing = fleet.unknown(precision)
    if not missing:
        return exchange.uncounted(axes_of(recipe.parallel, fleet.size, fleet.per_node))
    costs = [*(["whether it fits"] if "memory" in missing else []), *(["speed, time and cost"] if set(missing) - {"memory"} else [])]
    if fleet.device is None:
        meant = f" (did you mean {close}?)" if (close := close_to(fleet.name)) else ""
        return (f"{fleet.name} is not in the hardware table{meant}: {' and '.join(costs)} are not known; describe it in a file and give "
                f"that with --gpu FILE; the table knows {', '.join(DEVICES)}",)
    if missing == ("peak",) and fleet.given is None:
        other = "fp32" if precision == "bf16" else "bf16"
        return (f"{fleet.name} has no matrix units for parallel.precision={precision}: {' and '.join(costs)} are not known; "
                f"parallel.precision={other} has a plan",)
    return (f"{fleet.device.source} does not say its {', '.join(missing)} (in {precision}): {' and '.join(costs)} are not known",)


def _assumed(recipe: Recipe, fleet: Fleet, given: Assumptions, found: Way) -> tuple[str, ...]:
    if fleet.device is None or found.pace is None:
        return ()
    speed_of = []
    if given.measured is None and given.mfu is None:
        speed_of = [f"layers reach {roofline.MATRIX:.0%} of the peak, fused attention {roofline.ATTENTION:.0%}, elementwise work "
                    f"{roofline.BANDWIDTH:.0%} of the memory's bandwidth"]
    elif given.measured is None:
        speed_of = [f"one GPU that waits for nobody reaches {given.mfu:.1%} of its peak (--mfu)"]
    return (
        *speed_of,
        f"links and network reach {exchange.EFFICIENCY:.0%} of their bandwidth; a node has {fleet.network_bandwidth * 8 / 1e9:,.0f} "
        f"Gbit/s to the others; as much exchange is hidden as computation takes; the slowest rank costs {speed.STRAGGLING:.0%} for each "
        "doubling of nodes",
        f"a core decodes {given.supply.per_core(recipe):,.0f} images a second, one image has {given.supply.image_bytes / 1000:,.0f} kB; a "
        f"node has {fleet.cores} cores",
        f"CUDA and NCCL hold {(memory.CONTEXT + memory.NCCL) / 2**30:.2f} GiB, and fragmentation costs {1 - USABLE:.0%} of the memory",
        f"a GPU fails every {given.mtbf_hours:,.0f} hours",
    )


def _measured(given: Assumptions) -> tuple[str, ...]:
    one = given.measured
    if one is None:
        return ()
    return (f"{one.mfu:.1%} MFU of one {one.device} with the recipe {one.recipe} in {one.precision}, micro-batch {one.micro_batch}, on "
            f"{one.date} ({one.path})",)
