"""One small model trained for real, to be evaluated, used and compared."""

from pathlib import Path

import pytest
from running import SMALL, Run, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    """Six epochs of digits: about nine of ten right."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    train(folder, *SMALL, "name=trained", "duration=6 epochs", "checkpoint.every=null", "evaluate.every=3 epochs", "data.log_samples=false")
    return Run(folder / "runs" / "trained")
