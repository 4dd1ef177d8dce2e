"""One cluster for all tests of this folder, a place to submit from, and the run that jobs are held against."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import faults
from jobs import PACE, TINY
from running import Run, train

from slurm import REPOSITORY, Cluster, missing


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    """Skips, saying what to install, where SLURM is not there."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.pythonpath.insert(0, faults(cluster.folder, PACE)["PYTHONPATH"].split(os.pathsep)[0])
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """Four idle nodes."""
    yield session_cluster
    session_cluster.clear()


@pytest.fixture
def yard(place: Path) -> Path:
    """A folder to submit from: as a checkout, with `data/digits` in it."""
    for name in ("slurm", "launch", "recipes"):
        (place / name).symlink_to(REPOSITORY / name)
    return place


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    """What the jobs train, in one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    train(folder, *TINY, "name=alone", "duration=120 steps", recipe="vit_huge")
    return Run(folder / "runs" / "alone")
