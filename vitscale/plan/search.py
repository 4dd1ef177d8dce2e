"""Ways of running a recipe on given hardware: engine, ZeRO stage, recomputation, offloading, micro-batch; the fastest that fits."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from vitscale.errors import RecipeError
from vitscale.plan.fleet import Fleet
from vitscale.plan.memory import USABLE, Memory, estimate, fitting_micro_batch
from vitscale.plan.speed import Pace, Supply, pace
from vitscale.recipe.axes import Axes, axes_of
from vitscale.recipe.check import contradictions, default_group
from vitscale.recipe.schema import Recipe

SAME = 0.01     # of the time: two ways this near are as fast as each other, and the one that changes less is taken


@dataclass(frozen=True)
class Way:
    """A recipe on a fleet, with the micro-batch that fits."""

    recipe: Recipe
    changes: dict[str, str | int | bool | None]     # dotted keys that differ from the recipe asked about
    micro_batch: int
    micro_steps: int
    memory: Memory
    fits: bool | None           # None: nobody knows how much memory there is
    pace: Pace | None


def shares(recipe: Recipe, fleet: Fleet) -> int:
    """Samples of the global batch that one rank takes.  Raises RecipeError when there are more ranks than groups of samples, or no whole
    groups of them."""
    ranks, group = axes_of(recipe.parallel, fleet.size, fleet.per_node).data_size, default_group(recipe)
    groups = recipe.global_batch // group
    if ranks > groups:
        raise RecipeError(f"global_batch: {recipe.global_batch} is shared out in groups of {group} (data.group), which is enough for "
                          f"{groups} ranks, not for {ranks}; take fewer nodes, or a larger batch")
    return -(-groups // ranks) * group


def way(recipe: Recipe, fleet: Fleet, supply: Supply, device_mfu: float | None = None,
        changes: dict[str, str | int | bool | None] | None = None) -> Way:
    """The recipe as it is.  What does not fit is shown with its own micro-batch, or the smallest.  Raises RecipeError."""
    share, there, on_gpu = shares(recipe, fleet), fleet.device.memory_bytes if fleet.device else None, not fleet.is_cpu
    fits: bool | None = None
    if recipe.micro_batch is not None:
        group = default_group(recipe)
        micro_batch = min(recipe.micro_batch, -(-share // group) * group)
    elif there is None:
        micro_batch = share
    else:
        try:
            micro_batch, fits = fitting_micro_batch(recipe, fleet.size, there, share, local_size=fleet.per_node), True
        except RecipeError:
            micro_batch, fits = default_group(recipe), False
    micro_steps = -(-share // micro_batch)
    memory = estimate(recipe, fleet.size, micro_batch, micro_steps, on_gpu, fleet.per_node)
    if there is not None and fits is None:
        fits = memory.total <= USABLE * there
    return Way(recipe, changes or {}, micro_batch, micro_steps, memory, fits,
               pace(recipe, fleet, micro_batch, micro_steps, supply, device_mfu))


def ways(recipe: Recipe, fleet: Fleet, supply: Supply, device_mfu: float | None = None) -> list[Way]:
    """All that fit, the fastest first; of those as fast as it, those that change the least."""
    found = []
    for other, changes in _others(recipe, fleet):
        one = way(other, fleet, supply, device_mfu, changes)
        if one.fits and one.pace is not None:
            found.append(one)
    best = min((one.pace.step_s for one in found if one.pace), default=0.0)

    def order(one: Way) -> tuple[float, int, float]:
        assert one.pace is not None
        near = one.pace.step_s <= best * (1 + SAME)
        return (0.0, len(one.changes), one.pace.step_s) if near else (one.pace.step_s, 0, 0.0)

    return sorted(found, key=order)


def _others(recipe: Recipe, fleet: Fleet) -> Iterator[tuple[Recipe, dict[str, str | int | bool | None]]]:
    """The recipe with other keys of parallel, as far as these go with the rest of it.  Never one that changes what is learned."""
    whole: dict[str, str | int | bool | None] = {"zero_offload": False, "replicate": None, "gather": "each"}
    engines: list[dict[str, str | int | bool | None]] = [whole | {"engine": "fsdp"} | values for values in _sharded(recipe, fleet)]
    engines.append(whole | {"engine": "ddp"})
    engines += [whole | {"engine": "zero", "zero_stage": stage, "zero_offload": offload}
                for stage in (1, 2, 3) for offload in (False, True)]
    kinds: list[dict[str, str | int | bool | None]]
    kinds = [{"recompute": kind, "recompute_every": 1} for kind in ("none", "selective", "blocks")]
    kinds += [{"recompute": "blocks", "recompute_every": every} for every in (2, 3)]
    for engine in engines:
        for kind in kinds:
            # compiling saves time, no memory, and does not go with everything; the plan's speeds know nothing of it
            for values in (engine | kind, engine | kind | {"compile": False}):
                other = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=values), "micro_batch": None})
                if contradictions(other):
                    continue
                changes: dict[str, str | int | bool | None] = {
                    f"parallel.{key}": value for key, value in values.items() if getattr(recipe.parallel, key) != value}
                yield other, changes if recipe.micro_batch is None else changes | {"micro_batch": None}
                break


def _sharded(recipe: Recipe, fleet: Fleet) -> list[dict[str, str | int | bool | None]]:
    """What divides the ranks of engine fsdp: as the recipe does, in one group, in a group for each node; gathered for each pass or once."""
    found: dict[Axes, str | int | None] = {}
    for replicate in (recipe.parallel.replicate, None, "nodes"):
        parallel = recipe.parallel.model_copy(update={"engine": "fsdp", "replicate": replicate})
        with contextlib.suppress(RecipeError):      # no whole groups
            found.setdefault(axes_of(parallel, fleet.size, fleet.per_node), replicate)
    return [{"replicate": replicate, "gather": gather} for replicate in found.values() for gather in ("each", "once")]
