"""What `vitscale plan` does with its options."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import EXIT_DONE, EXIT_WRONG_INPUT, RecipeError
from vitscale.plan.answer import Assumptions, Plan, plan_run
from vitscale.plan.cost import MTBF_HOURS
from vitscale.plan.described import read_described
from vitscale.plan.fleet import Fleet, find_fleet
from vitscale.plan.measured import read_measured
from vitscale.plan.speed import IMAGE_BYTES, Supply
from vitscale.recipe import find_recipe, load_recipe
from vitscale.recipe.known import Note


@dataclass(frozen=True)
class PlanOptions:
    """The command line's; sizes in its units."""

    on: str
    price: float | None = None
    mfu: float | None = None
    measured: Path | None = None
    storage_gb: float | None = None         # GB/s
    image_kb: float | None = None
    images_per_core: float | None = None
    mtbf: float | None = None               # hours of one GPU
    write: Path | None = None
    gpu: Path | None = None                 # a file that describes the device


def assumptions_of(options: PlanOptions) -> Assumptions:
    """Raises RecipeError when a number makes no sense."""
    for name, value in (("--price", options.price), ("--storage", options.storage_gb), ("--image-kb", options.image_kb),
                        ("--images-per-core", options.images_per_core), ("--mtbf", options.mtbf), ("--mfu", options.mfu)):
        if value is not None and not 0 < value < float("inf") and not (name == "--price" and value == 0):
            raise RecipeError(f"{name}: wants a number > 0, got {value:g}")
    if options.mfu is not None and options.mfu > 1:
        raise RecipeError(f"--mfu: is a share of the peak between 0 and 1, got {options.mfu:g}")
    if options.mfu is not None and options.measured is not None:
        raise RecipeError("give one of --mfu, an assumption, and --measured, a measurement")
    supply = Supply(options.images_per_core, round(1000 * options.image_kb) if options.image_kb else IMAGE_BYTES,
                    None if options.storage_gb is None else 1e9 * options.storage_gb)
    measured = None if options.measured is None else read_measured(options.measured)
    return Assumptions(options.price, options.mfu, measured, supply, options.mtbf or MTBF_HOURS)


def fleet_from(options: PlanOptions) -> Fleet:
    """Raises ClusterError, RecipeError."""
    return find_fleet(options.on, read_described(options.gpu) if options.gpu else None)


def plan_command(recipe: str, overrides: Sequence[str], options: PlanOptions,
                 tell: Callable[[Note], None] | None = None) -> tuple[Plan, int]:
    """The plan, and the exit code: 2 where the recipe does not fit, whatever else would.  `tell`: as load_recipe() has it.
    Raises UserError."""
    read = load_recipe(recipe, overrides, tell)
    plan = plan_run(read, fleet_from(options), assumptions_of(options))
    if options.write is not None:
        from vitscale.recipe.edit import write_edited

        write_edited(find_recipe(recipe), overrides, plan.proposal.changes if plan.proposal else {}, options.write)
    return plan, EXIT_WRONG_INPUT if plan.memory.fits is False else EXIT_DONE


def as_text(plan: Plan) -> str:
    return json.dumps(plan.as_json(), indent=1)
