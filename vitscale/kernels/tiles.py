"""How rows and columns of a matrix are shared out among the programs of a kernel.  Pure: knows neither torch nor Triton."""

from dataclasses import dataclass

ENOUGH = 396        # programs that keep a large GPU busy: three for each of 132 multiprocessors


@dataclass(frozen=True)
class Tiling:
    """A program takes `steps` times `rows` rows by `cols` columns; there are `down` x `across` programs of `warps` warps."""

    rows: int
    cols: int
    steps: int
    down: int
    across: int
    warps: int


def power_of_two(number: int) -> int:
    """The least that is not below it."""
    return 1 << max(number - 1, 0).bit_length()


def whole_rows(rows: int, width: int, most_steps: int = 1) -> Tiling:
    """Tiles of about 2,048 numbers, each with all of its rows: for sums along them."""
    cols = power_of_two(width)
    return _tiling(rows, width, max(2048 // cols, 1), cols, most_steps, warps=min(max(cols // 512, 4), 16))


def parts_of_rows(rows: int, width: int, size: int, cols: int, most_steps: int) -> Tiling:
    """Tiles of `size` numbers, at most `cols` columns each: for sums down the columns."""
    cols = min(cols, power_of_two(width))
    return _tiling(rows, width, size // cols, cols, most_steps, warps=8)


def _tiling(rows: int, width: int, tall: int, cols: int, most_steps: int, warps: int) -> Tiling:
    """As many steps, a power of two, as leave ENOUGH programs: each step saves partial sums."""
    across, steps = -(-width // cols), most_steps
    while steps > 1 and -(-rows // (tall * steps)) * across < ENOUGH:
        steps //= 2
    return Tiling(tall, cols, steps, -(-rows // (tall * steps)), across, warps)
