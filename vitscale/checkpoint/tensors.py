"""Files of named tensors (safetensors), ours and others': whole, or their shapes alone; whatever is wrong with one is named."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitscale.checkpoint.facts import Damaged
from vitscale.errors import StorageError, said
from vitscale.files import patiently

_Found = TypeVar("_Found")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises Damaged."""
    return _reading(path, lambda: load_file(path))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Raises OSError, SafetensorError."""
    patiently(path, lambda: _by_the_system(lambda: save_file(tensors, path, metadata=metadata)))


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, from the header alone.  Raises Damaged."""
    def shapes() -> dict[str, tuple[int, ...]]:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}     # noqa: SIM118  (it is no mapping)

    return _reading(path, shapes)


def first_not_finite(weights: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Name and count of numbers of the first tensor that holds some that are not finite."""
    for name, value in weights.items():
        if value.is_floating_point() and (count := int(value.numel() - value.isfinite().sum())):
            return name, count
    return None


def _reading(path: Path, read: Callable[[], _Found]) -> _Found:
    try:
        if not patiently(path, path.is_file):      # a pipe would keep the reader waiting
            raise FileNotFoundError(2, "is missing or no regular file")
        return patiently(path, lambda: _by_the_system(read))
    except StorageError:
        raise
    except Exception as error:      # each layer below has errors of its own
        raise Damaged(f"{path}: cannot be read as safetensors ({said(error)})") from None


def _by_the_system(act: Callable[[], _Found]) -> _Found:
    """What safetensors says in words of an error of the system, as that error.  Raises OSError, SafetensorError."""
    try:
        return act()
    except SafetensorError as error:
        if (number := re.search(r"os error ([0-9]+)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
