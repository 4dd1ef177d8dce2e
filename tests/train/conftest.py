"""One packed and indexed copy of the digits for all runs of this folder, and the unbroken run that others are held against."""

from pathlib import Path

import pytest
from running import SMALL, Run, train


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
