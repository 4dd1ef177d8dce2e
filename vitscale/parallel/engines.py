"""Which engine a recipe names."""

from dataclasses import replace

from vitscale.parallel.accelerated import AccelerateEngine
from vitscale.parallel.ddp import DdpEngine
from vitscale.parallel.engine import Engine, Work
from vitscale.parallel.fsdp import FsdpEngine
from vitscale.parallel.world import World
from vitscale.parallel.zero import ZeroEngine
from vitscale.recipe import Parallel

ENGINES: dict[str, type[Engine]] = {"ddp": DdpEngine, "fsdp": FsdpEngine, "zero": ZeroEngine, "accelerate": AccelerateEngine}


def open_engine(parallel: Parallel, world: World, work: Work) -> Engine:
    """`world` may have been joined for another recipe: its ranks are divided as `parallel` says."""
    return ENGINES[parallel.engine](parallel, replace(world, parallel=parallel), work)
