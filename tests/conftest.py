"""Shared by all tests: helpers, threads of a process, the packed digits, and the unbroken run that others are held against."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import preloaded
import pytest
from running import SMALL, Run, train

LONG = tuple(f"tests/{room}/" for room in (
    "chaos", "train", "web", "evaluate", "parallel", "cluster", "scaling", "export", "objectives", "benchmarks"))
GRID_S = 7200        # of one test of the larger grids, on a slow machine beside others
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)     # hundreds of processes start: each would compile torch and us anew, for seconds
sys.dont_write_bytecode = False
signal.signal(signal.SIGHUP, signal.SIG_DFL)        # under nohup it is ignored, by what the tests start too
sys.path.insert(0, str(Path(__file__).parent))
if sys.platform == "linux":
    subprocess.Popen = preloaded.Popen              # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The rooms that take long come first, so that several workers end together; within a file the order stays."""
    items.sort(key=lambda item: (not is_of_slurm(item.nodeid), not item.nodeid.startswith(LONG)))
    for item in items:
        if item.get_closest_marker("all") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(GRID_S))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one worker's; the tests of jobs all are, since they share one cluster."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if is_of_slurm(nodeid) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False      # by number of tests; ours are in order
    return ByFile(config, log)


def is_of_slurm(nodeid: str) -> bool:
    return Path(nodeid.partition("::")[0]).name.startswith(("test_slurm_", "test_storm"))


@pytest.fixture(autouse=True)
def _levels_as_they_were() -> Iterator[None]:
    """A command that ran inside the tests' process has set the level of what is logged, and caplog hears no more than that."""
    yield
    logging.getLogger("vitscale").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vitscale.data import open_index, pack_digits

    folder = tmp_path_factory.mktemp("digits") / "digits"
    pack_digits(folder)
    for split in ("train", "val"):
        open_index((str(folder / f"{split}-*.tar"),))
    return folder


@pytest.fixture
def place(tmp_path: Path, digits: Path) -> Path:
    """An empty folder in which `data/digits` is there already."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits)
    return tmp_path


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    """60 steps of one process, never interrupted: over the end of an epoch (step 45 is a partial batch)."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    train(folder, *SMALL, "name=unbroken", "duration=60 steps")
    return Run(folder / "runs" / "unbroken")
