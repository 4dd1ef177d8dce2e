"""`vitscale bench`: reads the recipe, becomes a rank or starts them, measures, shows."""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitscale.bench.figures import Figure, show
from vitscale.errors import ClusterError
from vitscale.observe.console import make_console, setup_logging
from vitscale.parallel.launch import hold_lifeline, launch, rank_command
from vitscale.parallel.rank_info import RankInfo, rank_info_from_environment
from vitscale.parallel.world import World, joined
from vitscale.recipe import Recipe, load_recipe
from vitscale.recipe.axes import Axes
from vitscale.shapes.families import check_model

Measured = tuple[list[Figure], dict[str, Any]]


def read(file: str, overrides: Sequence[str]) -> Recipe:
    """The recipe, with torch's threads as training has them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    setup_logging(make_console(), level=logging.WARNING)
    recipe = load_recipe(file, overrides)
    check_model(recipe.model)
    return recipe


def on_ranks(recipe: Recipe, ranks: int | None, measure: Callable[[World], Measured], title: str, as_json: bool,
             keep: Callable[[dict[str, Any]], None] | None = None) -> int:
    """Measure as one of the ranks that srun or torchrun started, or start `ranks` of this machine and let them.  keep: takes the facts on
    rank 0.  Returns the exit code."""
    place = rank_info_from_environment()
    if place is None and (ranks or 1) > 1:
        with tempfile.TemporaryDirectory(prefix="vitscale-bench-") as logs:
            return launch(rank_command(sys.argv[1:]), ranks or 1, Path(logs), time.time()).code
    if place is not None:
        hold_lifeline()
    with joined(recipe.parallel, place or RankInfo()) as world:
        figures, facts = measure(world)
        if world.is_first:
            if keep is not None:
                keep(facts)
            show(title, figures, facts, as_json)
        world.barrier()     # whoever started the ranks ends them once the first has gone
    return 0


def one_rank(recipe: Recipe, what: str) -> Recipe:
    """Raises ClusterError for an engine that wants more ranks than one."""
    for axis in (name for name in Axes().sizes if name != "shard"):
        if getattr(recipe.parallel, axis) not in (None, 1, "nodes"):
            raise ClusterError(f"{what} is measured on one rank; add parallel.{axis}=1")
    return recipe
