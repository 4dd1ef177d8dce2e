"""Which images were decoded whole and found sound, known again by their bytes."""

import numpy as np
from numpy.typing import NDArray

from vitscale.data.native import MARK_WORDS

_MOST = 1 << 24         # images that are remembered, in 128 MB at most; of a larger set those seen last
_MARKS = 7              # ways into each image's coded data: 84 bytes
_MOST_MARKED = 1 << 22  # images of a set whose marks are kept, in 352 MB at most, on every rank


def sum_of(data: bytes) -> int:
    """Of an image's bytes; never 0, which stands for none."""
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    tail = int.from_bytes(data[8 * len(words):], "little")
    return (int(words.sum()) + tail + len(data)) % 2**64 or 1


class DecodedImages:
    """A table of sums, one place for each sample id (modulo its length).  Memory is taken as it fills.  Safe for many threads.

    The decoder can only tell damage by reading an image to its end.  Once it has, bytes that are the same need no second telling, so what a
    crop leaves out need not be decoded.  The sum is that of all 64-bit words, modulo 2^64: a flipped bit always changes it, other damage
    but for one chance in 2^64 unless it only swaps words.  For 100 KB it takes 0.004 ms, where decoding takes 1.
    """

    def __init__(self, num_samples: int) -> None:
        self._sums = np.zeros(min(num_samples, _MOST), np.uint64)
        self._marks = np.zeros((num_samples, _MARKS, MARK_WORDS), np.uint32) if num_samples <= _MOST_MARKED else None

    def contains(self, sample: int, found: int) -> bool:
        """Whether the sample had this sum when it was last noted."""
        return int(self._sums[sample % len(self._sums)]) == found

    def marks(self, sample: int) -> NDArray[np.uint32] | None:
        """A copy of what decode() wrote down when it read the sample whole, to be read again once it is known, or to be written.  Asked for
        before knows(): then they are of the same bytes, whatever other threads note.  None in a large set."""
        return None if self._marks is None else self._marks[sample].copy()

    def note(self, sample: int, found: int, marks: NDArray[np.uint32] | None = None) -> None:
        """It was decoded whole, nothing was wrong, and these are its marks."""
        place = sample % len(self._sums)
        if self._marks is not None and marks is not None:
            self._sums[place] = 0       # nobody knows it while they change
            self._marks[sample] = marks
        self._sums[place] = found
