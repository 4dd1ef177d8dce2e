"""Where this process stands: its rank, the number of ranks, its device; joined from SLURM, torchrun or vitscale's own launcher."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vitscale.counts import plural
from vitscale.errors import ClusterError
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.rendezvous import rendezvous
from vitscale.recipe import Parallel
from vitscale.recipe.axes import Axes, axes_of, check_nodes

log = logging.getLogger(__name__)



@dataclass(frozen=True)
class World:
    """This rank among all ranks, connected."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    host_group: Any             # gloo group over all ranks for small host-side exchanges; None for one process
    parallel: Parallel = field(default_factory=Parallel)    # which divides the ranks

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @functools.cached_property
    def axes(self) -> Axes:
        """The groups that the ranks form."""
        return axes_of(self.parallel, self.size, self.local_size)

    @property
    def data_size(self) -> int:
        """Into how many parts a global batch is divided."""
        return self.axes.data_size

    @property
    def data_rank(self) -> int:
        """Whose part of the global batch this rank is given."""
        return self.axes.data_rank(self.rank)

    @property
    def leads(self) -> bool:
        """Whether this rank answers for its samples; the others that are given the same ones keep silent."""
        return self.axes.leads(self.rank)

    def barrier(self) -> None:
        if self.host_group is not None:
            dist.barrier(group=self.host_group)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, a plain picklable object, on every rank."""
        if self.host_group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's plain `value` in rank order, on rank 0; None elsewhere."""
        if self.host_group is None:
            return [value]
        box: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, box, dst=0, group=self.host_group)
        return box

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on some rank.  Exchanged between hosts: no device waits."""
        if self.host_group is None:
            return flag
        vote = torch.tensor(int(flag))
        dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=self.host_group)
        return bool(vote)

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Add `values` (on the device) over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """(n, ...) on the device -> those of every rank that leads, one after the other; n is the same on all."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat([part for rank, part in enumerate(parts) if self.axes.leads(rank)])

    def sum_over_samples(self, values: torch.Tensor) -> torch.Tensor:
        """Of `values` that add up samples, the sum over every sample once."""
        return self.sum_(values if self.leads else torch.zeros_like(values))


def wait_as_long_as_it_takes() -> None:
    """Lift the timeouts of all exchanges between ranks: for when something else watches over them, in time that each rank could run.

    They count time in which a rank was stopped as waiting, and end the run at the moment when all are continued.
    """
    if dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(timedelta(days=30), group)


def choose_device(parallel: Parallel, place: RankInfo) -> torch.device:
    """`auto` is a GPU where there is one.  Raises ClusterError if a GPU is asked for and absent, or there are too few for the ranks."""
    count = torch.cuda.device_count() if parallel.device != "cpu" else 0
    if parallel.device == "cuda" and count == 0:
        raise ClusterError("parallel.device is cuda but torch sees no GPU here; use parallel.device=auto or cpu")
    if count == 0:
        return torch.device("cpu")
    # srun may show each task its own GPU only; a launcher of ours shows all of them
    if place.local_rank >= count and (count > 1 or place.prepared):
        raise ClusterError(f"local rank {place.local_rank} has no GPU: {count} visible; start at most {plural(count, 'rank')} on this node")
    return torch.device("cuda", place.local_rank if count > 1 else 0)


def refuse_uneven_nodes(world: World) -> None:
    """Raises RecipeError on every rank where parallel.replicate is nodes, and these hold no equal runs of ranks.  Collective."""
    if world.parallel.replicate == "nodes":
        check_nodes(world.broadcast(world.gather((world.local_rank, world.local_size))))


@contextlib.contextmanager
def joined(parallel: Parallel, place: RankInfo, timeout_s: float = 600.0) -> Iterator[World]:
    """Connect to the other ranks for the length of a `with` block.  Raises Absent, which names them, if some do not come;
    RecipeError, if they do not form the groups that the recipe wants."""
    # what each rank can tell by itself: how many are on the other nodes, none knows yet
    alike = {"replicate": None} if parallel.replicate == "nodes" else {}
    axes_of(parallel.model_copy(update=alike), place.size, place.local_size)
    device = choose_device(parallel, place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = None
    # fsdp, zero and accelerate want a process group even for one rank
    if place.size > 1 or parallel.engine != "ddp":
        store, timeout = rendezvous(place, timeout_s), timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout,
                                device_id=device if device.type == "cuda" else None)
        group = dist.new_group(backend="gloo", timeout=timeout)
    try:
        world = World(place.rank, place.size, place.local_rank, place.local_size, device, group, parallel)
        refuse_uneven_nodes(world)
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
