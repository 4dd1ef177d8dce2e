"""What was surveyed of the samples of a step, and the two questions that may be asked about those of other ranks."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class Rows(Mapping[str, Tensor]):
    """By name (n, ...): the rows of this rank's n places of a step, those of its micro-batches one after the other.

    Places that no sample fills, and those of samples that could not be read, are among them, and count in neither answer.
    """

    def __init__(self, rows: Mapping[str, Tensor], weight: Tensor, index: Tensor, size: int,
                 over_ranks: Callable[[Tensor], Tensor], of_ranks: Callable[[Tensor], Tensor]) -> None:
        """weight (n,), above 0 where there is a sample; index (n,) int64, its place in the global batch of `size`.

        over_ranks: adds a tensor up over all samples' ranks; of_ranks: (n, ...) -> those of all ranks, one after the other.
        """
        self._rows, self.valid, self._index, self.size = rows, weight > 0, index, size
        self.over_ranks, self._of_ranks = over_ranks, of_ranks

    def __getitem__(self, name: str) -> Tensor:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def total(self, values: Tensor) -> Tensor:
        """values (n, ...) -> (...) in fp64: their sum over every sample of the global batch that counts.  Collective.

        In fp64, so that how samples are shared out over ranks and micro-batches does not show in fp32.
        """
        counted = torch.where(self.valid.view(-1, *[1] * (values.ndim - 1)), values, 0)       # where: a dummy's row need not be finite
        return self.over_ranks(counted.sum(dim=0, dtype=torch.float64))

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
