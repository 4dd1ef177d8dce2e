"""Random numbers by key: any one of them can be computed alone, on any machine, in any order.  Pure numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitscale.errors import DataError

# Only numpy's raw Philox bits are used: the streams of Generator's methods may change between numpy versions (NEP 19).
_SHARDS, _INSIDE, _SAMPLE, _GROUP, _STEP = 1, 2, 3, 4, 5          # what a key is for, so that no two uses share a stream
_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)  # Philox4x64 (Salmon et al. 2011, table 2)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10

# Columns of a sample's row of uniforms.  An option keeps its columns whether or not it is used, so none shifts another.
CROP = slice(0, 22)         # ten tries of (area, log ratio), then the place (top, left)
FLIP = 22
JITTER = slice(23, 28)      # the order of the four operations; factors of brightness, contrast, saturation; the hue's turn
THREE = slice(28, 30)       # 3-Augment: which of the three, the blur's radius
ERASE = slice(30, 44)       # whether; five tries of (area, log ratio); the place (top, left); the key of the noise
RANDAUGMENT = slice(44, 64)     # five operations of (which, whether, magnitude, sign)
KEEP = 64                   # stochastic depth: one column for each row of drop rates, from here on
COLOURS = slice(4032, 4040)     # whether jittered, whether grey, whether blurred, the blur's radius, whether solarized
TASK = 4096                 # what the objective draws (masks, rotations), from here on

# Columns of a group's row, for what mixes its samples or leaves some of them out.
MIX = slice(0, 5)           # whether, mixup or cutmix, lambda, the box's centre (row, column)
SHARES = 8                  # stochastic depth of groups: one column for each row of drop rates and place in the group, from here on


def check_seed(seed: int) -> int:
    """`seed`, if it fits Philox's 64-bit key word.  Raises DataError."""
    if not 0 <= seed < 2**64:
        raise DataError(f"seed: wants a whole number from 0 to 2**64 - 1, got {seed}")
    return seed


def shard_permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` shards in an epoch.  -> (count,)"""
    return _permutation(seed, _SHARDS, epoch, 0, count)


def inside_permutation(seed: int, epoch: int, shard: int, count: int) -> NDArray[np.int64]:
    """The order of the `count` samples of one shard in an epoch.  -> (count,)"""
    return _permutation(seed, _INSIDE, epoch, shard, count)


def _permutation(seed: int, use: int, epoch: int, shard: int, count: int) -> NDArray[np.int64]:
    if count == 0:
        return np.zeros(0, np.int64)
    bits = np.random.Philox(key=np.array([seed, use], np.uint64), counter=np.array([0, epoch, shard, 0], np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")


def uniforms(
    seed: int, set_index: int, epoch: int | NDArray[np.int64], ids: Sequence[int] | NDArray[np.int64], repeat: int | NDArray[np.int64],
    count: int, first: int = 0, view: int | NDArray[np.int64] = 0,
) -> NDArray[np.float64]:
    """Columns [first, first + count) of the uniforms in [0, 1) that belong to the samples `ids` (B,).  -> (B, count) float64

    epoch; repeat, which of its repeats in the epoch a sample is; view, which of its views: one for all or (B,).

    Philox4x64-10 (Salmon et al. 2011) keyed (seed, set) with counter (block, epoch, sample, view 2^32 + repeat); a column holds the high
    53 bits of a word.  `first` is a multiple of 4, the words of a block.  Equal to numpy's own Philox, only for many samples at once.
    """
    return _rows(seed, _SAMPLE | set_index << 8, epoch, ids, repeat + (view << 32), count, first)


def group_uniforms(
    seed: int, epoch: int, groups: Sequence[int] | NDArray[np.int64], count: int, first: int = 0, view: int = 0,
) -> NDArray[np.float64]:
    """Columns [first, first + count) of the uniforms in [0, 1) of each group (B,), numbered by its place in the epoch.  -> (B, count)
    float64; `first` and `view` as in `uniforms`."""
    return _rows(seed, _GROUP, epoch, groups, view << 32, count, first)


def step_uniforms(seed: int, position: int, rows: Sequence[int], count: int) -> NDArray[np.float64]:
    """`count` uniforms in [0, 1) for each of the numbered rows (R,) of the step that begins at `position`, the same for all of its samples.
    -> (R, count) float64"""
    return _rows(seed, _STEP, position, rows, 0, count, 0)


def _rows(
    seed: int, use: int, epoch: int | NDArray[np.int64], ids: Sequence[int] | NDArray[np.int64], repeat: int | NDArray[np.int64],
    count: int, first: int,
) -> NDArray[np.float64]:
    assert first % 4 == 0
    ids = np.asarray(ids, np.int64)
    blocks = -(-count // 4)
    counter = np.empty((4, len(ids), blocks), np.uint64)
    counter[0] = np.arange(blocks, dtype=np.uint64) + np.uint64(first // 4 + 1)     # numpy steps the counter before its first block
    counter[1] = np.reshape(np.asarray(epoch, np.uint64), (-1, 1))
    counter[2] = ids.astype(np.uint64)[:, None]
    counter[3] = np.reshape(np.asarray(repeat, np.uint64), (-1, 1))
    words = philox4x64(counter, (seed, use))
    raw = np.moveaxis(words, 0, -1).reshape(len(ids), blocks * 4)[:, :count]
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def philox4x64(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds of Philox4x64 (Salmon et al. 2011, section 3.3) on many counters.  counter (4, ...) -> (4, ...) random words."""
    c0, c1, c2, c3 = (np.ascontiguousarray(word) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + _WEYL[0]) % 2**64, (k1 + _WEYL[1]) % 2**64
    return np.stack([c0, c1, c2, c3])


def _multiply(a: NDArray[np.uint64], b: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """High and low 64 bits of the 128-bit product, from four 32-bit products."""
    half = np.uint64(32)
    a_low, a_high = a & _MASK, a >> half
    b_low, b_high = np.uint64(b & 0xFFFFFFFF), np.uint64(b >> 32)
    low = a_low * b_low
    middle = a_high * b_low + (low >> half)             # cannot overflow: (2^32 - 1)^2 + 2^32 - 1 < 2^64
    carry = a_low * b_high + (middle & _MASK)
    return a_high * b_high + (middle >> half) + (carry >> half), a * np.uint64(b)
