"""`profile=steps:20-25`: torch profiler traces of those steps, one for each rank, and a page that sums them up."""

import gzip
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from vitscale.observe.telling import only_tells
from vitscale.observe.trace import STEP, Glance, glance, page
from vitscale.parallel.world import World
from vitscale.recipe.steps import Steps

log = logging.getLogger(__name__)
FOLDER = "profile"
SUMMARY = "summary.md"


class StepProfiler:
    """Called at the borders of every step; does nothing outside of `steps`, and nothing at all where they are None."""

    def __init__(self, steps: Steps | None, run_folder: Path, world: World, nodes: Sequence[str]) -> None:
        self._steps, self._folder, self._world, self._nodes = steps, run_folder / FOLDER, world, nodes
        self._profiler: torch.profiler.profile | None = None
        self._mark: torch.profiler.record_function | None = None
        self._under_way = False     # on all ranks alike, also where the profiler has failed: what is found is gathered

    def begin(self, step: int) -> None:
        """The step of this number begins."""
        if self._steps is None or not self._steps.first <= step <= self._steps.last:
            return
        with only_tells("the profile"):
            if not self._under_way:
                self._under_way = True
                kinds = [torch.profiler.ProfilerActivity.CPU]
                if self._world.device.type == "cuda":
                    kinds.append(torch.profiler.ProfilerActivity.CUDA)
                profiler = torch.profiler.profile(activities=kinds, profile_memory=True)
                profiler.start()
                self._profiler = profiler
            self._mark = torch.profiler.record_function(f"{STEP}{step}")
            self._mark.__enter__()

    def end(self, step: int, is_last: bool) -> None:
        """It has ended; `is_last`: the run ends with it.  After the last one of those wanted, collective."""
        if self._mark is not None:
            with only_tells("the profile"):
                self._mark.__exit__(None, None, None)
            self._mark = None
        if not self._under_way or self._steps is None or not (is_last or step >= self._steps.last):
            return
        self._under_way = False
        found = self._world.gather(self._written())
        if found is not None:
            with only_tells("the profile"):
                (self._folder / SUMMARY).write_text(page(found, self._nodes, str(self._steps)), encoding="utf-8")
                log.info("profile of %s: %s", self._steps, self._folder / SUMMARY)

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profiler is not None:      # the run failed among these steps: what there is may tell why
            self._written()

    def _written(self) -> Glance | None:
        """This rank's trace, written down and looked at.  A disk that takes no more costs the profile, not the run."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            with only_tells("the profile"):
                profiler.stop()
                self._folder.mkdir(exist_ok=True)
                path = self._folder / f"rank-{self._world.rank}.json.gz"
                profiler.export_chrome_trace(str(path))
                with gzip.open(path, "rt", encoding="utf-8") as file:
                    return glance(json.load(file))
        return None
