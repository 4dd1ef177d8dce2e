"""Another library's description of a model and its tensors, read so that nothing is passed over in silence.

Every key, and every tensor, is used, known to be without effect on answers, or refused by its name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from vitscale.errors import CheckpointError

_NEEDED: Final = object()


class ForeignKeys:
    """A mapping that has to be read to its end: close() refuses what nobody asked for."""

    def __init__(self, values: Mapping[str, Any], inside: str = "") -> None:
        """`inside`: how the dotted names of its keys begin, where it is a mapping in another."""
        self.values, self.inside = values, inside
        self.defaults: dict[str, Any] = {}      # what stood for each key that may be left out: a test holds them to the library's own
        self._wrong: dict[str, str] = {}
        self._read: set[str] = set()
        self._inner: list[ForeignKeys] = []

    def take(self, key: str, default: Any = _NEEDED) -> Any:
        """A key that is used; `default`: what its library takes it to be where it is left out.  Raises CheckpointError if it is needed."""
        self._read.add(key)
        if default is not _NEEDED:
            self.defaults[key] = default
            return self.values.get(key, default)
        if key not in self.values:
            raise CheckpointError(f"lacks {self.inside}{key}, which says what model it is of")
        return self.values[key]

    def must(self, key: str, default: Any, *others: Any, why: str = "is not expressed here") -> None:
        """A key that has to have its library's default, or one of `others`, which come to the same here."""
        value = self.take(key, default)
        if not any(_same(value, one) for one in (default, *others)):
            self.refuse(key, f"{value!r} {why}; only {' or '.join(map(repr, (default, *others)))} is")

    def idle(self, *keys: str) -> None:
        """Keys that no answer depends on."""
        self._read.update(keys)

    def refuse(self, key: str, why: str) -> None:
        """A key whose value was read and cannot be followed."""
        self._wrong[key] = why

    def adopt(self, other: "ForeignKeys") -> None:
        """Have close() close another mapping too."""
        self._inner.append(other)

    def inner(self, key: str) -> "ForeignKeys":
        """The mapping that a key holds, which close() closes too."""
        self.idle(key)
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            self.refuse(key, "is no mapping")
            value = {}
        self.adopt(found := ForeignKeys(value, f"{self.inside}{key}."))
        return found

    def faults(self) -> dict[str, str]:
        """By its dotted name what is wrong with each key that was refused, or never asked for."""
        unknown = dict.fromkeys(self.values.keys() - self._read, "is not known here, so neither is what it does to answers")
        found = {self.inside + key: why for key, why in (unknown | self._wrong).items()}
        for mapping in self._inner:
            found |= mapping.faults()
        return found

    def close(self, where: str) -> None:
        """Raises CheckpointError naming every key that was refused, and each that was never asked for."""
        if faults := self.faults():
            raise CheckpointError("\n".join([f"{where}: describes a model that is not expressed here:",
                                             *(f"  {key}  {why}" for key, why in sorted(faults.items()))]))


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


class ForeignTensors(Mapping[str, Tensor]):
    """The tensors of a file, by their names there; which of them were looked at is remembered."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors, self._used = tensors, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        value = self._tensors[name]
        self._used.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self, idle: Iterable[str]) -> list[str]:
        """Names of the tensors that were not used and that no answer depends on: one of the patterns `idle` is their whole name.

        Raises CheckpointError naming those of which neither is true.
        """
        left = sorted(name for name in self._tensors if name not in self._used)
        surplus = [name for name in left if not any(re.fullmatch(pattern, name) for pattern in idle)]
        if surplus:
            more = f" and {len(surplus) - 4} more" if len(surplus) > 4 else ""
            raise CheckpointError(f"has tensors that no part of the described model takes: {', '.join(surplus[:4])}{more}")
        return left
