"""Files, folders, globs and shards of images to batches for a model; what cannot be read is told, and the rest goes on."""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitscale.data.bad import BadSample
from vitscale.data.cache import ShardCache
from vitscale.data.formats import names_shards, shards_in, suffixes
from vitscale.data.index import IMAGES, SetIndex, open_index
from vitscale.data.reader import ShardReader
from vitscale.data.remote import is_remote
from vitscale.data.transform import Transform
from vitscale.errors import DataError
from vitscale.processes import usable_cores

CACHE_BYTES = 50_000_000_000


@dataclass(frozen=True)
class ImageBatch:
    """Some images, and those that stood among them and could not be read."""

    names: list[str]                    # of the images
    images: Tensor                      # (B, C, S, S) fp32, normalised
    bad: list[tuple[str, str]]          # (name, why)


class ImageFiles:
    """Image files, in the order given; folders are walked, sorted."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        return str(self.paths[number])

    def read(self, number: int) -> bytes:
        """Raises BadSample."""
        try:
            return self.paths[number].read_bytes()
        except OSError as error:
            raise BadSample("read", error.strerror or str(error)) from None


class Samples:
    """The samples of shards, in the order they lie."""

    def __init__(self, index: SetIndex) -> None:
        self.index, self.reader = index, ShardReader(index, cache=ShardCache(None, CACHE_BYTES))
        self._ends = np.cumsum(index.counts)

    def __len__(self) -> int:
        return self.index.num_samples

    def place(self, number: int) -> tuple[int, int]:
        """(shard, number in it)"""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard] - self.index.counts[shard])

    def name(self, number: int) -> str:
        shard, place = self.place(number)
        return f"{self.index.paths[shard]}:{self.index.key_of(shard, place)}"

    def read(self, number: int) -> bytes:
        """Raises BadSample."""
        shard, place = self.place(number)
        image = self.index.image_of(shard, place)
        if image is None:
            members = ", ".join(ext for ext, _, _ in self.index.shard(shard).members(place))
            raise BadSample("image", f"has no image (its members are {members})")
        return self.reader.pread(shard, *image[1:])


class Several:
    """Sources one after the other."""

    def __init__(self, sources: Sequence["ImageFiles | Samples"]) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _of(self, number: int) -> tuple["ImageFiles | Samples", int]:
        which = int(np.searchsorted(self._ends, number, side="right"))
        return self.sources[which], number - int(self._ends[which] - len(self.sources[which]))

    def name(self, number: int) -> str:
        source, place = self._of(number)
        return source.name(place)

    def read(self, number: int) -> bytes:
        source, place = self._of(number)
        return source.read(place)


def open_images(given: Sequence[str], index_dir: str | None = None) -> Several:
    """Paths, folders, globs and shards (*.tar, brace URLs) -> one source.  Raises DataError for what is not there at all."""
    sources: list[ImageFiles | Samples] = []
    files: list[Path] = []
    for one in given:
        path = Path(one)
        if is_remote(one) or names_shards(one):
            sources += [ImageFiles(files)] * bool(files) + [Samples(open_index((one,), index_dir))]
            files = []
        elif path.is_dir():
            found = _below(path)
            shards = shards_in(path)
            if not found and shards:
                sources += [ImageFiles(files)] * bool(files) + [Samples(open_index(shards, index_dir))]
                files = []
            elif not found:
                raise DataError(f"{one}: holds no images ({', '.join(IMAGES)}) and no shards ({suffixes()})")
            files += found
        elif path.exists() or not glob.has_magic(one):
            files.append(path)          # one that is not there is told among the unreadable
        else:
            matches = [Path(match) for match in sorted(glob.glob(one, recursive=True))]
            if not matches:
                raise DataError(f"{one}: matches no file")
            files += [match for match in matches if match.is_file()]
    return Several([*sources, *([ImageFiles(files)] if files else [])])


def _below(folder: Path) -> list[Path]:
    found = []
    for here, below, names in os.walk(folder):
        below.sort()
        found += [Path(here, name) for name in sorted(names) if os.path.splitext(name)[1][1:].lower() in IMAGES]
    return found


def batches(source: Several | ImageFiles | Samples, transform: Transform, size: int, device: torch.device | str = "cpu",
            workers: int | None = None, numbers: Sequence[int] | None = None) -> Iterator[ImageBatch]:
    """The images of a source, or those at `numbers`, decoded ahead by threads, in order, `size` at a time."""
    def pixels(number: int) -> NDArray[np.uint8] | BadSample:
        try:
            return transform.pixels(source.read(number))
        except BadSample as error:
            return error

    places = range(len(source)) if numbers is None else numbers
    with ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="decode") as pool:
        ahead: list[tuple[int, Future[NDArray[np.uint8] | BadSample]]] = []
        todo = iter(places)
        while True:
            ahead += [(number, pool.submit(pixels, number)) for number in islice(todo, 3 * size - len(ahead))]
            if not ahead:
                return
            now, ahead = ahead[:size], ahead[size:]
            found = [(source.name(number), future.result()) for number, future in now]
            good = [(name, value) for name, value in found if not isinstance(value, BadSample)]
            bad = [(name, f"{value.reason}: {value}") for name, value in found if isinstance(value, BadSample)]
            stacked = torch.from_numpy(np.stack([value for _, value in good])) if good else torch.empty(
                0, transform.image, transform.image, transform.channels, dtype=torch.uint8)
            yield ImageBatch([name for name, _ in good], transform.normalised(stacked.to(device)), bad)
