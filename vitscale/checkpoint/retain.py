"""Which checkpoints are kept: the newest few and the best.  Pure."""

from collections.abc import Iterable


def to_delete(steps: Iterable[int], keep: int, best: int | None) -> list[int]:
    """Steps whose checkpoints may go: all but the `keep` newest and the best one (None: there is none)."""
    newest = sorted(set(steps))
    kept = {*newest[-keep:], best}
    return [step for step in newest if step not in kept]
