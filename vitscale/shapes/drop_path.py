"""Stochastic depth: at which rates residual branches are left out, and of how many samples of a group."""


def drop_rates(depth: int, last: float, schedule: str = "linear") -> tuple[float, ...]:
    """Rates of the 2 L branches: `last` in all blocks (constant), or rising linearly from 0 in the first block to it in the last (Huang et
    al. 2016, section 4).

    Row 2 l is the attention of block l, row 2 l + 1 its MLP; both have the block's rate.  A single block has rate 0.
    """
    rising = [last * block / (depth - 1) if depth > 1 else 0.0 for block in range(depth)]
    rates = [last] * depth if schedule == "constant" else rising
    return tuple(rate for rate in rates for _ in range(2))


def kept_of_group(rate: float, group: int) -> int:
    """How many of `group` samples a branch is computed for where it is left out of a fixed share of them (Oquab et al. 2024, DINOv2,
    section 5): (1 - rate) group to the nearest whole number, but one at least."""
    return max(round((1 - rate) * group), 1)
