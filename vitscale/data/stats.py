"""What a set of shards holds, in numbers: classes, sizes, formats, bytes, copies.  Reads every image's bytes, decodes none."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitscale.data.bad import BadSample
from vitscale.data.image import image_size
from vitscale.data.index import SetIndex
from vitscale.data.labels import LabelRule, classes_in
from vitscale.data.reader import ShardReader
from vitscale.data.sources import class_names
from vitscale.data.survive import looking_at

Progress = Callable[[int, int], None]       # (shards done, shards in all)
_Row = tuple[tuple[int, ...] | None, bytes, int, tuple[int, int] | str, str]
_FORMATS = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WebP", b"BM": "BMP"}


@dataclass
class Stats:
    """Counts over a whole set."""

    shards: int
    samples: int
    classes: Counter[int] = field(default_factory=Counter)          # samples of each class
    unlabelled: int = 0                                             # without a label that is a whole number
    empty: int = 0                                                  # with a list of labels, which holds none
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)       # images whose header cannot be read, by reason
    width: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))     # pixels, of each readable image
    height: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))     # of each image
    copies: list[list[str]] = field(default_factory=list)           # keys of images whose bytes are equal
    disputed: int = 0                                               # groups of copies with different labels
    names: tuple[str, ...] = ()                                     # of the classes, where classes.txt lies beside the shards

    def class_name(self, number: int) -> str:
        return f"{number} {self.names[number]}" if 0 <= number < len(self.names) else str(number)

    @property
    def extra_copies(self) -> int:
        return sum(len(keys) - 1 for keys in self.copies)

    def as_json(self) -> dict[str, Any]:
        def spread(values: NDArray[np.int64]) -> dict[str, float]:
            return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())} if len(values) else {}

        return {"shards": self.shards, "samples": self.samples, "unlabelled": self.unlabelled, "empty": self.empty,
                "classes": {str(number): count for number, count in sorted(self.classes.items())},
                "formats": dict(self.formats), "unreadable": dict(self.unreadable),
                "width": spread(self.width), "height": spread(self.height), "shorter_side": spread(np.minimum(self.width, self.height)),
                "image_bytes": {"total": int(self.bytes.sum()), **spread(self.bytes)},
                "copies": self.copies, "extra_copies": self.extra_copies, "disputed": self.disputed}


def stats(index: SetIndex, *, label: str = "cls", class_map: str | None = None, multi_label: bool = False, workers: int = 1,
          on_progress: Progress | None = None) -> Stats:
    """Look at every sample of an indexed set.  label, class_map, multi_label: as in `data` of a recipe.

    Copies are found by sha256 of the image's bytes, so a re-encoded copy is not one.
    """
    reader, rule = ShardReader(index), LabelRule.of(label, class_map, multi_label)
    total = Stats(len(index.paths), index.num_samples, names=tuple(rule.names or class_names(index)))
    sizes: list[tuple[int, int]] = []
    lengths: list[int] = []
    digests: list[bytes] = []
    labels: list[tuple[int, ...] | None] = []
    places: list[tuple[int, int]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="stats") as pool:
        for shard, rows in enumerate(pool.map(lambda shard: _look(index, reader, shard, rule), range(len(index.paths)))):
            for number, (value, digest, length, size, kind) in enumerate(rows):
                labels.append(value)
                digests.append(digest)
                lengths.append(length)
                places.append((shard, number))
                total.formats[kind] += 1
                if isinstance(size, str):
                    total.unreadable[size] += 1
                else:
                    sizes.append(size)
            if on_progress:
                on_progress(shard + 1, len(index.paths))
    reader.close()
    total.classes = Counter(one for value in labels if value is not None for one in value)
    total.unlabelled = sum(value is None for value in labels)
    total.empty = sum(value == () for value in labels)
    total.height, total.width = np.array(sizes, np.int64).reshape(-1, 2).T
    total.bytes = np.array(lengths, np.int64)
    for group in _equal(digests):
        total.copies.append([index.key_of(*places[one]) for one in group])
        total.disputed += len({None if (value := labels[one]) is None else frozenset(value) for one in group}) > 1
    return total


def classes_of(index: SetIndex, reader: ShardReader, shard: int, number: int, rule: LabelRule) -> tuple[int, ...] | None:
    """The class numbers of a sample, one unless rule.several; None if it has no label that can be read."""
    raw = reader.read(shard, number, (rule.member,)).get(rule.member)
    try:
        return None if raw is None else tuple(classes_in(raw, rule))
    except BadSample:
        return None


def _look(index: SetIndex, reader: ShardReader, shard: int, rule: LabelRule) -> list[_Row]:
    """(labels, digest, bytes, (height, width) or what is wrong, format) of each sample of a shard."""
    rows: list[_Row] = []
    for number in range(int(index.counts[shard])):
        value = classes_of(index, reader, shard, number, rule)
        image = index.image_of(shard, number)
        data = reader.pread(shard, *image[1:]) if image else b""
        size: tuple[int, int] | str
        try:
            with looking_at(index.paths[shard], index.key_of(shard, number), data):
                size = image_size(data)
        except BadSample as error:
            size = error.reason
        digest = hashlib.sha256(data).digest()[:16] if data else b""
        rows.append((value, digest, len(data), size, _FORMATS.get(data[:2], "other")))
    return rows


def _equal(digests: Sequence[bytes]) -> list[list[int]]:
    """Groups of two or more places with the same digest, in order; empty digests are left out."""
    order = sorted(range(len(digests)), key=digests.__getitem__)        # stable: places rise inside a group
    groups, start = [], 0
    for at in range(1, len(order) + 1):
        if at == len(order) or digests[order[at]] != digests[order[start]]:
            if at - start > 1 and digests[order[start]]:
                groups.append(order[start:at])
            start = at
    return sorted(groups)
