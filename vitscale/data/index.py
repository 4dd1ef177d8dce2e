"""What a set of shards holds: a sidecar of offsets for each shard, one small file for the set.  Built once, then only loaded."""

import errno
import hashlib
import json
import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from vitscale.data import remote
from vitscale.data.descriptors import HELD, mapped
from vitscale.data.formats import FORMATS, HEAD, compression, format_of
from vitscale.data.members import Damage, GroupMembers, Link, Member, ReadAt, Walk, group, split_name
from vitscale.data.shards import Homes, expand, locked, publish_index, stat_shards, unreadable
from vitscale.data.survive import looking_at
from vitscale.errors import DataError, UserError
from vitscale.files import patiently
from vitscale.recipe.redact import redact

VERSION = 2               # 2: links inside a shard are followed, keys that stand apart are told
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")      # what decode.py understands
_THREADS = 8                                        # the walk waits for the disk more than it computes
_COLUMNS = ("bytes", "mtime_ns", "samples", "images", "damaged", "lost", "header_sha256")
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})
_NOT_OURS = frozenset({errno.EACCES, errno.EPERM})      # another user's; one of ours may lie elsewhere
Progress = Callable[[int, int], None]               # (shards done, shards in all)


@dataclass(frozen=True)
class ShardIndex:
    """One shard's sidecar: M members in file order, S samples.  Sample i has the members [first[i], first[i + 1])."""

    path: str
    offset: NDArray[np.int64]       # (M,) bytes, of a member's data
    size: NDArray[np.int64]         # (M,) bytes
    ext: NDArray[np.uint16]         # (M,) into extensions
    first: NDArray[np.int64]        # (S + 1,)
    extensions: tuple[str, ...]
    format: str                     # of FORMATS
    damage: tuple[Damage, ...]
    row: dict[str, Any]             # this shard's columns of the set file

    def members(self, index: int) -> list[tuple[str, int, int]]:
        """[(extension, offset, size)] of one sample, in file order."""
        first, ext, offset, size, names = self._plain
        return [(names[ext[at]], offset[at], size[at]) for at in range(first[index], first[index + 1])]

    @cached_property
    def _plain(self) -> tuple[memoryview, memoryview, memoryview, memoryview, tuple[str, ...]]:
        """The columns as views that give Python's own numbers, in half the time that slices of arrays take."""
        return self.first.data, self.ext.data, self.offset.data, self.size.data, self.extensions


class SeveralImages(DataError):
    """More than one member of a sample could be its image."""


def image_member(extensions: Sequence[str], chosen: str | None = None) -> str | None:
    """Which member is the image: `chosen` (data.image), else the one named as an image (`jpg`), else the one that ends so (`left.png`).

    Raises SeveralImages where there are two such and none is chosen: which comes first in the shard must not decide."""
    if chosen is not None:
        return chosen if chosen in extensions else None
    found = [ext for ext in extensions if ext in IMAGES] or [ext for ext in extensions if ext.rpartition(".")[2] in IMAGES]
    if len(found) > 1:
        raise SeveralImages(f"has {len(found)} images ({', '.join(found)}); name the one to use with data.image (--image), such as "
                            f"{found[0]}")
    return found[0] if found else None


class SetIndex:
    """An indexed list of shards.  Cheap to hold: sidecars are mapped when first asked for, the last `open_limit` stay mapped;
    none of them holds a file open."""

    def __init__(
        self, paths: Sequence[str], columns: dict[str, list[Any]], homes: Homes, group_members: GroupMembers = "adjacent",
        image: str | None = None, open_limit: int = 4096,
    ) -> None:
        self.urls = tuple(paths)                                    # what opens a shard: for nobody's eyes
        self.paths = tuple(redact(path) for path in paths)          # what names it
        self.bytes = np.asarray(columns["bytes"], np.int64)         # of each shard
        self.mtime_ns = np.asarray(columns["mtime_ns"], np.int64)
        self.counts = np.asarray(columns["samples"], np.int64)      # samples of each shard
        self.damaged = int(sum(columns["damaged"]))                 # places in the set that could not be understood
        self.lost = int(sum(columns["lost"]))                       # samples known to have been there and dropped
        self.header_sha256 = columns["header_sha256"]
        self.open_limit = open_limit
        self.group_members, self.image = group_members, image
        self._homes = homes
        self._open: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = Lock()

    @property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def hash(self) -> str:
        """sha256 over (header hash, bytes, samples) of each shard in order, and over how members are grouped if not as webdataset does.
        Not over paths: a copied set is the same set."""
        rows = zip(self.header_sha256, self.bytes.tolist(), self.counts.tolist(), strict=True)
        how = b"" if self.group_members == "adjacent" else self.group_members.encode()
        return hashlib.sha256(b"".join(bytes.fromhex(sha) + struct.pack("<qq", size, count) for sha, size, count in rows) + how).hexdigest()

    def shard(self, number: int) -> ShardIndex:
        """The sidecar of shard `number`.  Thread-safe.

        Raises DataError when it is gone, cannot be read or belongs to another version of the shard, OutOfDescriptors.
        """
        with self._lock:
            found = self._open.get(number)
            if found is not None:
                self._open.move_to_end(number)
                return found
        path = self.urls[number]
        places = self._homes.readable(path)
        try:
            found = _load_sidecar(places, path, int(self.bytes[number]), int(self.mtime_ns[number]), needed=True)
        except UserError:
            raise
        except OSError as error:
            raise unreadable(error.filename or places[0], error) from error
        if found is None:
            raise DataError(f"{redact(path)}: its index is gone or no longer fits; run `vitscale data index` on the shards")
        with self._lock:
            self._open[number] = found
            if len(self._open) > self.open_limit:
                self._open.popitem(last=False)
        return found

    def key_of(self, shard: int, index: int) -> str:
        """The key of a sample, read again from its shard for a message; '?' if it cannot be read."""
        total = int(self.bytes[shard])
        entry = self.shard(shard)
        walk, member = FORMATS[entry.format].walk, int(entry.first[index])
        offset = int(entry.offset[member])
        # members lie one behind the other, but for links and joined ones, for which the whole shard is walked
        start = int(entry.offset[member - 1] + entry.size[member - 1]) if member else 0
        try:
            with reading(self.urls[shard], total, int(self.mtime_ns[shard])) as read_at:
                for item in walk(read_at, total, Walk(), start):
                    if isinstance(item, Member) and item.offset == offset:
                        return (split_name(item.name) or ("?", ""))[0]
                    if isinstance(item, Link) or item.offset > offset:
                        break
                state = Walk()
                samples, _ = group(list(walk(read_at, total, state, 0)), state, self.group_members)
                first = next(iter(samples[index].members.values()))
                return samples[index].key if first.offset == offset else "?"        # else the content has moved
        except (OSError, IndexError, remote.Unreachable):
            return "?"

    def image_of(self, shard: int, index: int) -> tuple[str, int, int] | None:
        """(extension, offset, size) of a sample's image; None if it has none.  Raises SeveralImages, with its name."""
        members = self.shard(shard).members(index)
        try:
            name = image_member([ext for ext, _, _ in members], self.image)
        except SeveralImages as error:
            raise SeveralImages(f"{self.paths[shard]}: sample '{self.key_of(shard, index)}' {error}") from None
        return next((member for member in members if member[0] == name), None)

    def spread(self, limit: int) -> Iterator[tuple[int, int]]:
        """(shard, number in it) of up to `limit` samples, evenly over the shards and inside them."""
        filled = [shard for shard, count in enumerate(self.counts.tolist()) if count]
        shards = filled[::-(-len(filled) // limit)]
        each = limit // len(shards)
        for shard in shards:
            count = int(self.counts[shard])
            yield from ((shard, number) for number in range(0, count, -(-count // min(each, count))))

    def apart(self, shard: int) -> str | None:
        """What to say and do where members of one key stand apart in a shard; None where none do."""
        return next((damage.reason for damage in self.shard(shard).damage if damage.apart), None)

    def damage(self) -> list[tuple[str, Damage]]:
        """(path of the shard, what is wrong there), over the whole set.  Opens every damaged shard's sidecar."""
        return [(path, damage) for number, path in enumerate(self.paths) for damage in self.shard(number).damage]


def open_index(
    urls: str | Sequence[str], index_dir: str | None = None, on_progress: Progress | None = None, check: bool = True,
    group_members: GroupMembers = "adjacent", image: str | None = None,
) -> SetIndex:
    """The index of the shards `urls`; what is missing or stale (another size or mtime) is built first, in threads, under a lock.

    index_dir: where the index lies; None: beside the shards in .vitscale-index/ if that can be written, else the user's cache.
    check: compare every shard's size and mtime; False believes the set file, for ranks whose launcher has just checked.
    group_members, image: as in `data` of a recipe: which members of a shard make a sample, and which of these is the image.
    Raises DataError naming the shard that is missing, of no known format, or without images.
    """
    paths, homes = expand(urls), Homes(index_dir, "" if group_members == "adjacent" else group_members)
    sets = homes.sets(paths)
    if not check:
        found = _load_set(sets, paths, None)
        if found:
            return SetIndex(paths, found, homes, group_members, image)
    stats = stat_shards(paths)
    columns = _load_set(sets, paths, stats)
    if columns is None:
        folder = homes.writable(paths[0]).parent
        with locked(folder):
            columns = _load_set(sets, paths, stats) or _build_set(folder / sets[0].name, paths, stats, homes, on_progress, group_members)
    index = SetIndex(paths, columns, homes, group_members, image)
    if index.num_samples == 0:
        raise DataError(f"{paths[0]}: no samples in it{' nor in the other shards' if len(paths) > 1 else ''}; pack images into it")
    return index


def _load_set(places: Sequence[Path], paths: list[str], stats: tuple[list[int], list[int]] | None) -> dict[str, list[Any]] | None:
    for place in places:
        try:
            stored = json.loads(HELD.room(place.read_bytes, str(place)))
        except ValueError:
            continue                # damaged: it is made again
        except OSError as error:
            if error.errno in _NOT_THERE | _NOT_OURS:
                continue
            raise unreadable(place, error) from error
        if not isinstance(stored, dict) or stored.get("version") != VERSION or stored.get("urls") != [redact(path) for path in paths]:
            continue
        if stats is None or (stored["bytes"], stored["mtime_ns"]) == stats:
            return stored
    return None


def _build_set(
    place: Path, paths: list[str], stats: tuple[list[int], list[int]], homes: Homes, on_progress: Progress | None,
    group_members: GroupMembers,
) -> dict[str, list[Any]]:
    def row(path: str, size: int, mtime_ns: int) -> dict[str, Any]:
        try:
            ready = _load_sidecar(homes.readable(path), path, size, mtime_ns)
        except OSError as error:
            raise unreadable(error.filename or homes.readable(path)[0], error) from error
        return ready.row if ready else _build_sidecar(homes.writable(path), path, size, mtime_ns, group_members)

    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(remote.THREADS if any(remote.is_remote(path) for path in paths) else _THREADS) as pool:
        try:
            for done in pool.map(row, paths, *stats):
                rows.append(done)
                if on_progress:
                    on_progress(len(rows), len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    publish_index(place, json.dumps({"version": VERSION, "urls": [redact(path) for path in paths], **columns}).encode())
    return columns


@contextmanager
def reading(path: str, size: int, stamp: int) -> Iterator[ReadAt]:
    """Ranges of one shard's bytes, local or remote, for one thread.  Raises OSError; remote ones also DataError."""
    if remote.is_remote(path):
        yield remote.Ranges(path, remote.ShardFacts(size, stamp))
        return
    with HELD.room(lambda: open(path, "rb", buffering=0), path) as file:
        yield lambda offset, size: patiently(path, lambda: os.pread(file.fileno(), size, offset))


def _build_sidecar(place: Path, path: str, size: int, mtime_ns: int, how: GroupMembers) -> dict[str, Any]:
    """Walk one shard, write its sidecar, return its row of the set file.  Raises DataError for what is no shard or has no images."""
    state = Walk()
    with looking_at(redact(path), "", b""), reading(path, size, mtime_ns) as read_at:
        path, form = redact(path), format_of(path, read_at(0, HEAD))
        samples, lost = group(list(FORMATS[form].walk(read_at, size, state, 0)), state, how)
        if not samples and (size == 0 or state.damage):
            packed = compression(read_at(0, HEAD)) if form == "tar" else None
            why = f"compressed ({packed}); decompress it, since samples are read at their offsets" if packed else (
                "an empty file" if size == 0 else f"no {form}, or no whole sample is left in it ({state.damage[0].reason})")
            raise DataError(f"{path}: {why}" + ("" if packed else "; remove it from the list, or pack it again"))
    names = sorted({ext for sample in samples for ext in sample.members})
    images = sum(any(ext.rpartition(".")[2] in IMAGES for ext in sample.members) for sample in samples)
    if samples and not images:
        passed = f"; passed over: {state.damage[0].reason}" if state.damage else ""
        raise DataError(f"{path}: no images in it; its members are {', '.join(names[:8])}, an image is one of {', '.join(IMAGES)}{passed}")
    if len(names) > 2**16:
        raise DataError(f"{path}: {len(names)} different extensions; WebDataset's key ends at the first dot of the file name")
    number = {name: at for at, name in enumerate(names)}
    members = [(number[ext], member) for sample in samples for ext, member in sample.members.items()]
    row = {
        "bytes": size, "mtime_ns": mtime_ns, "samples": len(samples), "images": images,
        "damaged": sum(not damage.apart for damage in state.damage), "lost": len(lost), "header_sha256": state.sha.hexdigest(),
    }
    damage = [asdict(damage) for damage in sorted(state.damage, key=lambda damage: damage.offset)]
    meta = {"version": VERSION, "format": form, "extensions": names, "damage": damage, **row}
    arrays: dict[str, NDArray[Any]] = {
        "offset": np.array([member.offset for _, member in members], np.int64),
        "size": np.array([member.size for _, member in members], np.int64),
        "ext": np.array([ext for ext, _ in members], np.uint16),
        "first": np.cumsum([0, *(len(sample.members) for sample in samples)]).astype(np.int64),
    }
    publish_index(place, save(arrays, {"vitscale": json.dumps(meta)}))
    return row


def _load_sidecar(places: Sequence[Path], path: str, size: int, mtime_ns: int, needed: bool = False) -> ShardIndex | None:
    """The first sidecar that is whole and was made from a shard of this size and mtime.

    Raises OSError for what says nothing about whether there is one (a disk that does not answer, no descriptors); where it is `needed`
    also for the one that there is but may not be read.  Else that one is passed over: another can be built.
    """
    refused = None
    for place in places:
        try:
            view = HELD.room(lambda place=place: _view(place), str(place))      # type: ignore[misc]
            (length,) = struct.unpack("<Q", view[:8].tobytes())
            header = json.loads(view[8:8 + length].tobytes())
            meta = json.loads(header.pop("__metadata__")["vitscale"])
            form = meta.get("format", "tar")        # none is named in those from before there were others
            if (meta["version"], meta["bytes"], meta["mtime_ns"]) != (VERSION, size, mtime_ns) or form not in FORMATS:
                continue
            arrays = {name: _array(view, 8 + length, header[name]) for name in ("offset", "size", "ext", "first")}
        except (ValueError, KeyError, TypeError, struct.error):
            continue                # a damaged one: it is built again
        except OSError as error:
            if error.errno in _NOT_OURS:
                refused = error
            elif error.errno not in _NOT_THERE:
                raise
            continue
        damage = tuple(Damage(**item) for item in meta["damage"])
        row = {name: meta[name] for name in _COLUMNS}
        return ShardIndex(redact(path), **arrays, extensions=tuple(meta["extensions"]), format=form, damage=damage, row=row)
    if refused is not None and needed:
        raise refused
    return None


def _view(place: Path) -> NDArray[np.uint8]:
    with open(place, "rb") as file:
        return mapped(file)


def _array(view: NDArray[np.uint8], base: int, entry: dict[str, Any]) -> NDArray[Any]:
    dtype = np.dtype({"I64": "<i8", "U16": "<u2"}[entry["dtype"]])
    low, high = entry["data_offsets"]
    return np.frombuffer(view, dtype, (high - low) // dtype.itemsize, base + low)
