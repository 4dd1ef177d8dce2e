"""`profile=steps:20-25`: torch profiler traces of those steps, one for each rank, and a page that sums them up."""

import contextlib
import gzip
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from vitscale.observe.trace import STEP, Glance, glance, page
from vitscale.parallel.world import World
from vitscale.recipe.steps import Steps

log = logging.getLogger(__name__)
FOLDER = "profile"
SUMMARY = "summary.md"


class Profile:
    """Called at the borders of every step; does nothing outside of `steps`, and nothing at all where they are None."""

    def __init__(self, steps: Steps | None, run_folder: Path, world: World, nodes: Sequence[str]) -> None:
        self._steps, self._folder, self._world, self._nodes = steps, run_folder / FOLDER, world, nodes
        self._profiler: torch.profiler.profile | None = None
        self._mark: torch.profiler.record_function | None = None

    def begin(self, step: int) -> None:
        """The step of this number begins."""
        if self._steps is None or not self._steps.first <= step <= self._steps.last:
            return
        if self._profiler is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._world.device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds, profile_memory=True)
            self._profiler.start()
        self._mark = torch.profiler.record_function(f"{STEP}{step}")
        self._mark.__enter__()

    def end(self, step: int, is_last: bool) -> None:
        """It has ended; `is_last`: the run ends with it.  After the last one of those wanted, collective."""
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        if self._profiler is None or self._steps is None or not (is_last or step >= self._steps.last):
            return
        found = self._world.gather(self._written())
        if found is not None:
            with contextlib.suppress(OSError):
                (self._folder / SUMMARY).write_text(page(found, self._nodes, str(self._steps)), encoding="utf-8")
                log.info("profile of %s: %s", self._steps, self._folder / SUMMARY)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profiler is not None:      # the run failed among these steps: what there is may tell why
            self._written()

    def _written(self) -> Glance | None:
        """This rank's trace, written down and looked at.  A disk that takes no more costs the profile, not the run."""
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        try:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"rank-{self._world.rank}.json.gz"
            profiler.export_chrome_trace(str(path))
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return glance(json.load(file))
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("the profile of rank %d is incomplete: %s", self._world.rank, error)
            return None
