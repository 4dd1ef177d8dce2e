"""Other sets that a classifier is held against: new images of its classes, some of its classes, several right answers, corruptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitscale.data.formats import shards_in, suffixes
from vitscale.data.labels import read_class_map
from vitscale.errors import DataError
from vitscale.evaluate.metrics import hits, share

KINDS = ("plain", "subset", "real")


@dataclass(frozen=True)
class Set:
    """Shards with labels of their own, and how an answer is judged.

    plain: by its label (ImageNet-V2).  subset: only the classes that the set has can be answered (ImageNet-A, -R: Hendrycks et al. 2021).
    real: a sample has any number of right answers, and one without any is left out (ReaL: Beyer et al. 2020).
    """

    name: str
    urls: tuple[str, ...]
    kind: str = "plain"


def parse_set(text: str, kind: str) -> Set:
    """`NAME=SHARDS`.  Raises DataError."""
    name, equals, urls = text.partition("=")
    if not equals or not name or not urls:
        raise DataError(f"'{text}': wants NAME=SHARDS, such as v2='data/v2/*.tar'")
    return Set(name, (urls,), kind)


def corruptions_in(folder: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """FOLDER/CORRUPTION/SEVERITY/*.tar, as ImageNet-C lies -> shards by (corruption, severity).  Raises DataError."""
    found = {(level.parent.name, level.name): tuple(shards_in(level)) for level in sorted(folder.glob("*/*")) if level.is_dir()}
    found = {key: urls for key, urls in found.items() if urls}
    if not found:
        raise DataError(f"{folder}: holds no CORRUPTION/SEVERITY/{suffixes()}, such as fog/3/shard-000000.tar")
    return found


def read_mapping(path: Path, class_names: Sequence[str]) -> NDArray[np.int64]:
    """A file whose line i says which of the model's classes, by name or number, class i of a set is -> numbers.  Raises DataError."""
    numbers = {name: number for number, name in enumerate(class_names)}
    found = []
    for line, name in enumerate(read_class_map(path), 1):
        number = numbers.get(name, int(name) if name.isascii() and name.isdigit() else -1)
        if not 0 <= number < len(class_names):
            raise DataError(f"{path}, line {line}: {name!r} is none of the model's {len(class_names)} classes, by name or number")
        found.append(number)
    return np.array(found, np.int64)


def judge(kind: str, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """logits (n, C); labels (n,), of the model's classes, or of kind real (n, C) of 0 and 1 -> what is said of the set."""
    if kind == "real":
        some = labels.any(axis=1)
        right = labels[np.arange(len(labels)), logits.argmax(axis=1)] > 0
        return {"top1": share(right[some]), "unlabelled": int((~some).sum())}
    found: dict[str, Any] = {}
    if kind == "subset":
        present = np.unique(labels)
        logits, labels = logits[:, present], np.searchsorted(present, labels)
        found["classes"] = len(present)
    found["top1"] = share(hits(logits, labels, 1))
    return found | ({"top5": share(hits(logits, labels, 5))} if logits.shape[1] > 5 else {})


def summary(found: Mapping[str, Any]) -> str:
    """`72.4 % (71.9 to 72.9)` of what share() gave."""
    low, high = found["interval"]
    return f"{found['value']:.2%} ({low:.2%} to {high:.2%}) of {found['count']:,}"
