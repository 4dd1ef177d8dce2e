"""The table of contents of a sharded state (torch keeps it as a pickle), read without running code and held against the files."""

import io
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from vitscale.checkpoint.facts import Damaged, short
from vitscale.errors import CheckpointError, StorageError, said
from vitscale.files import patiently, read_regular

TABLE = ".metadata"
MAX_BYTES = 2**30


class _SafeUnpickler(pickle._Unpickler):
    """Only the plain classes of that table are let in.

    The one written in Python: a flipped bit can ask the one in C for a memo of 4 billion places, which fills the memory.
    """

    _ALLOWED: ClassVar = {
        "torch.distributed.checkpoint.metadata": {
            "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
        "torch": {"Size", "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "strided"},
        "torch.serialization": {"_get_layout"},
        "collections": {"OrderedDict"},
        "pathlib": {"PosixPath", "Path", "PurePosixPath"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refuses to load {module}.{name}")


def read_table(state: Path) -> Metadata:
    """The table of the state in that folder: tensors alone, each whole, and every part of one inside a file that is there.  Raises
    Damaged naming the file and what is wrong."""
    path = state / TABLE
    try:
        metadata = _SafeUnpickler(io.BytesIO(read_regular(path, MAX_BYTES))).load()
        contents = metadata.state_dict_metadata.values() if isinstance(metadata, Metadata) else [None]
        if not all(isinstance(item, TensorStorageMetadata) for item in contents):
            raise Damaged(f"{path}: holds more than tensors; it was not written by vitscale")
        for item in (metadata.storage_data or {}).values():
            if Path(item.relative_path).name != item.relative_path or item.relative_path in ("", ".."):
                raise Damaged(f"{path}: points outside its folder ({item.relative_path})")
        if wrong := next(_contradictions(metadata, state), None):
            raise Damaged(f"{path}: {wrong}")
    except (CheckpointError, StorageError):
        raise
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({said(error)})") from None
    except Exception as error:      # a crafted or torn pickle raises whatever it likes
        raise Damaged(f"{path}: is no table of contents of a vitscale checkpoint ({said(error)})") from None
    return metadata


def _contradictions(metadata: Metadata, state: Path) -> Iterator[str]:
    """What the table says of itself and its files that cannot be true.  What it raises says that too."""
    lengths: dict[str, int] = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(name, str)
        assert isinstance(tensor, TensorStorageMetadata)
        dtype, size = tensor.properties.dtype, tuple(tensor.size)
        if not (isinstance(dtype, torch.dtype) and _are_lengths(size)):
            yield f"'{name}' has no sensible shape or type ({short(size)}, {short(dtype)})"
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(size):
            yield f"'{name}' of shape {size} is not whole"
        for chunk in tensor.chunks:
            place = metadata.storage_data.get(MetadataIndex(name, chunk.offsets))
            if place is None:
                yield f"does not say where '{name}' from {tuple(chunk.offsets)} on is kept"
            if not _is_inside(chunk, size):
                yield f"'{name}' of shape {size} has a part outside it ({tuple(chunk.offsets)}, {tuple(chunk.sizes)})"
            if place.relative_path not in lengths:
                file = state / place.relative_path
                if not file.is_file():
                    yield f"names {place.relative_path}, which is missing"
                lengths[place.relative_path] = os.path.getsize(file)
            if not (_are_lengths((place.offset, place.length)) and place.offset + place.length <= lengths[place.relative_path]
                    and math.prod(chunk.sizes) * dtype.itemsize <= place.length):
                yield (f"'{name}' from {tuple(chunk.offsets)} on cannot be bytes {short(place.offset)} to "
                       f"{short(place.offset)} + {short(place.length)} of {place.relative_path}")


def _are_lengths(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _is_inside(chunk: ChunkStorageMetadata, size: tuple[int, ...]) -> bool:
    return (len(chunk.offsets) == len(chunk.sizes) == len(size) and _are_lengths((*chunk.offsets, *chunk.sizes))
            and all(start + length <= whole for start, length, whole in zip(chunk.offsets, chunk.sizes, size, strict=True)))


class Reader(dcp.FileSystemReader):
    """torch's reader, with the table of contents read as above, and once; what cannot be read is named with its file."""

    _table: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        # torch asks up to twice more, and prints a traceback where that fails
        metadata = self._table = self._table or read_table(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        try:
            return super().read_data(plan, planner)
        except Exception:
            for item in plan.items:
                self._try(item.storage_index)
            return super().read_data(plan, planner)     # each is readable by itself: it had passed, or a target has another shape

    def _try(self, index: MetadataIndex) -> None:
        """Read one part of a tensor by itself.  Raises Damaged naming it."""
        place = self.storage_data[index]
        path = Path(self.path) / place.relative_path
        try:
            found = torch.load(io.BytesIO(patiently(path, lambda: _piece(path, place.offset, place.length))), map_location="cpu",
                               weights_only=True)
            if not isinstance(found, torch.Tensor):
                raise ValueError(f"holds a {type(found).__name__}, no tensor")
        except StorageError:
            raise
        except Exception as error:      # of torch's own, of zip archives, of pickles
            raise Damaged(f"{path}: '{index.fqn}' cannot be read ({said(error)})") from None


def _piece(path: Path, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)
