"""What was surveyed of the samples of a step, and the two questions that may be asked about those of other ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Rows of which a sample has any number."""

    values: Tensor      # (m, ...)
    owner: Tensor       # (m,) int64: whose each one is, by its place among the samples


Row = Tensor | Ragged


def joined(parts: Sequence[Row], size: int) -> Row:
    """The rows of micro-batches of `size` samples, one after the other."""
    if not isinstance(parts[0], Ragged):
        return torch.cat(cast(list[Tensor], parts))
    ragged = cast(Sequence[Ragged], parts)
    return Ragged(torch.cat([one.values for one in ragged]), torch.cat([one.owner + number * size for number, one in enumerate(ragged)]))


def divided(row: Row, parts: Sequence[Row] | None, count: int) -> Sequence[Tensor]:
    """What became of joined(parts), or another row for each sample, by the `count` micro-batches again."""
    if not isinstance(row, Ragged):
        return row.chunk(count)
    return row.values.split([len(one.owner) for one in cast(Sequence[Ragged], parts)])


class Rows(Mapping[str, Tensor]):
    """By name (n, ...): the rows of this rank's n places of a step, those of its micro-batches one after the other.

    Places that no sample fills, and those of samples that could not be read, are among them, and count in neither answer.
    """

    def __init__(self, rows: Mapping[str, Row], weight: Tensor, index: Tensor, size: int,
                 over_ranks: Callable[[Tensor], Tensor], of_ranks: Callable[[Tensor], Tensor]) -> None:
        """weight (n,), above 0 where there is a sample; index (n,) int64, its place in the global batch of `size`.

        over_ranks: adds a tensor up over all samples' ranks; of_ranks: (n, ...) -> those of all ranks, one after the other.
        """
        self._rows, self.valid, self._index, self.size = rows, weight > 0, index, size
        self.over_ranks, self._of_ranks = over_ranks, of_ranks

    def __getitem__(self, name: str) -> Tensor:
        row = self._rows[name]
        assert isinstance(row, Tensor)
        return row

    def ragged(self, name: str) -> Ragged:
        """Rows of which a sample has any number."""
        row = self._rows[name]
        assert isinstance(row, Ragged)
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def total(self, values: Tensor) -> Tensor:
        """values (n, ...) -> (...) in fp64: their sum over every sample of the global batch that counts.  Collective.

        In fp64, so that how samples are shared out over ranks and micro-batches does not show in fp32.
        """
        return self.over_ranks(self.own(values))

    def own(self, values: Tensor) -> Tensor:
        """This rank's part of total(), for those who put several into one exchange by over_ranks()."""
        counted = torch.where(self.valid.view(-1, *[1] * (values.ndim - 1)), values, 0)       # where: a dummy's row need not be finite
        return counted.sum(dim=0, dtype=torch.float64)

    def count(self) -> Tensor:
        """(), fp64: the samples that count.  Collective."""
        return self.total(torch.ones_like(self.valid, dtype=torch.float32))

    def gathered(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values (n, ...) -> those of the whole global batch in its order (size, ...), 0 where no sample counts; and where one does
        (size,).  Collective.  The same on every number of ranks."""
        everyone, places = self._of_ranks(values), self._of_ranks(torch.where(self.valid, self._index, -1))
        known = places >= 0
        rows, there = values.new_zeros(self.size, *values.shape[1:]), torch.zeros(self.size, dtype=torch.bool, device=values.device)
        rows[places[known]], there[places[known]] = everyone[known], True
        return rows, there
