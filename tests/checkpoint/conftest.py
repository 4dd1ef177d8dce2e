"""Two small checkpoints that tests damage."""

import shutil
from pathlib import Path

import pytest
from small_checkpoints import write


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints/ with steps 10 and 20; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("pristine")
    write(folder, 10, 20)
    return folder


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))
