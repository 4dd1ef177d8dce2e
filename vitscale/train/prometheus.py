"""What a rank tells Prometheus while it trains: its own numbers to its node's board, those of the run and the machine to the exporter."""

import contextlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitscale.data import Stream
from vitscale.observe import readings
from vitscale.observe.address import exporter_address
from vitscale.observe.board import Board, open_board
from vitscale.observe.exporter import Exporter
from vitscale.observe.targets import target_file, withdraw
from vitscale.observe.telling import only_tells
from vitscale.parallel.engine import Engine
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.train.pace import PROBE_EVERY
from vitscale.train.step import StepResult

log = logging.getLogger(__name__)


class RankMetrics:
    """Every rank has one; the first of each node serves for all of it.  Use as a context manager.  Making one is collective."""

    def __init__(self, recipe: Recipe, run_folder: Path, world: World, engine: Engine, stream: Stream, nodes: Sequence[str]) -> None:
        self._rank, self._engine, self._stream, self._device = world.rank, engine, stream, world.device
        self._open = contextlib.ExitStack()
        self._exporter: Exporter | None = None
        node = nodes[world.rank]
        here = [rank for rank, name in enumerate(nodes) if name == node]
        if world.is_first:
            with only_tells("the announcements of earlier attempts"):
                withdraw(run_folder)        # of attempts that were killed, on whatever nodes
        board, problem = open_board(world, here)
        if problem is not None:
            log.warning("rank %d is missing in the metrics of %s: no memory is shared with the other ranks there (%s)", world.rank, node,
                        problem)
        self._own = board.writer(world.rank)
        asked: list[readings.Reading] = [readings.process_memory]
        if world.device.type == "cuda":
            with only_tells("the readings of this GPU"):
                asked += self._gpu_readings()
        if world.rank == here[0]:
            with only_tells("the metrics exporter"):
                self._serve(recipe, run_folder, world, board, node, nodes)
            asked += [readings.host_memory, readings.disks(_places(recipe, run_folder, stream))]
        with only_tells("the readings of this machine"):
            self._open.enter_context(readings.Readings(asked, self._read))

    def _serve(self, recipe: Recipe, run_folder: Path, world: World, board: Board, node: str, nodes: Sequence[str]) -> None:
        address = exporter_address(node, nodes)
        if address is None:
            log.warning("no metrics exporter on %s: the address at which the cluster reaches it is not known", node)
            return
        self._exporter = Exporter(
            host=address, port=recipe.observe.exporter_port, discovery=target_file(run_folder, node), board=board,
            labels={"run": recipe.name, "node": node}, tells_run=world.is_first)
        self._open.callback(self._exporter.close)

    def __enter__(self) -> "RankMetrics":
        return self

    def __exit__(self, *error: Any) -> None:
        with only_tells("closing the metrics exporter"):
            self._open.__exit__(*error)

    def step(self, number: int, result: StepResult, phases: Mapping[str, float]) -> None:
        """A step has ended, the `number`-th; `phases` are this rank's seconds in it."""
        own, stream = self._own, self._stream
        own.step(phases)
        own.set("rank_own_seconds", result.own_s[self._rank])
        own.set("rank_samples_total", stream.read)
        own.set("rank_read_bytes_total", stream.bytes)
        own.set("rank_ready_batches", stream.ready)
        if number % PROBE_EVERY == 1 and (waited_s := self._engine.exchange_s) is not None:
            own.set("rank_gradient_exchange_seconds", waited_s)

    def update(self, values: Mapping[str, Any]) -> None:
        """Numbers of the run; only rank 0 has them."""
        if self._exporter is not None:
            self._exporter.update(values)

    def _read(self, values: Mapping[str, Any]) -> None:
        """From the thread of readings."""
        for name, value in values.items():
            if name.startswith(("rank_", "device_")):
                self._own.set(name, value)
            elif self._exporter is not None:
                self._exporter.update({name: value})

    def _gpu_readings(self) -> list[readings.Reading]:
        def allocated() -> dict[str, float | None]:
            return {"device_memory_allocated_bytes": float(torch.cuda.max_memory_allocated(self._device))}

        by_nvml = readings.device(str(torch.cuda.get_device_properties(self._device).uuid))
        return [allocated] if by_nvml is None else [allocated, by_nvml]


def _places(recipe: Recipe, run_folder: Path, stream: Stream) -> dict[str, Path]:
    """The folders whose disks can fill up."""
    cache = Path(recipe.data.cache_dir or tempfile.gettempdir())
    return {"runs": run_folder} | ({"cache": cache} if stream.is_remote else {})
