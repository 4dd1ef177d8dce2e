"""One cluster for all tests of this folder."""

from collections.abc import Iterator

import pytest
from slurm import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four idle nodes.  Skips, saying what to install, where SLURM is not there."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
