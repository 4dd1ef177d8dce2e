"""Slow ranks by numbers."""

import numpy as np
import pytest

from vitscale.resilience.stragglers import Notice, Stragglers


def looks(one: Stragglers, own_s: list[float], step_s: float, times: int, start_s: float = 0.0) -> list[tuple[float, Notice]]:
    """What is said in `times` equal looks, one a second -> (when, what)"""
    return [(start_s + second, notice) for second in range(times) for notice in one.look(own_s, step_s, start_s + second)]


EVEN = [0.1, 0.1, 0.1, 0.1]
SLOW = [0.1, 0.1, 0.3, 0.1]


def test_a_slow_rank_is_named_once_with_its_ratio() -> None:
    one = Stragglers(1.5)
    (at, notice), *more = looks(one, SLOW, 0.5, 600)
    assert more == []
    assert at == 9 + 5      # a full window, then five seconds without a break
    assert notice == Notice(2, "slow", 0.3, 0.1, pytest.approx(3.0))
    assert one.skew == pytest.approx(3.0)
    assert one.slowest == 2


def test_it_is_said_when_it_has_recovered_and_again_when_it_has_not() -> None:
    one = Stragglers(1.5, again_s=100.0)
    said = looks(one, SLOW, 0.5, 250)
    assert [(at, notice.kind) for at, notice in said] == [(14, "slow"), (114, "still slow"), (214, "still slow")]
    ((at, notice),) = looks(one, EVEN, 0.5, 60, start_s=250)
    assert notice == Notice(2, "recovered", 0.1, 0.1, pytest.approx(1.0))
    assert 250 + 5 <= at <= 250 + 10 + 5
    assert looks(one, EVEN, 0.5, 60, start_s=310) == []
    assert one.skew == pytest.approx(1.0)


def test_even_ranks_and_one_long_wait_are_nothing() -> None:
    one = Stragglers(1.5)
    assert looks(one, EVEN, 0.5, 30) == []
    assert looks(one, [0.1, 60.0, 0.1, 0.1], 60.0, 4, start_s=30) == []
    assert looks(one, EVEN, 0.5, 30, start_s=34) == []


def test_many_times_slower_at_no_account_is_nothing() -> None:
    own = [0.001, 0.001, 0.009, 0.001]
    assert looks(Stragglers(1.5), own, 0.5, 60) == []
    assert [notice.rank for _, notice in looks(Stragglers(1.5), own, 0.02, 60)] == [2]


def test_a_rank_that_is_slow_now_and_then_is_not_named() -> None:
    one = Stragglers(1.5)
    for second in range(300):
        assert one.look(SLOW if second % 12 < 4 else EVEN, 0.5, float(second)) == []
    short = Stragglers(1.5, window=1)
    for second in range(300):
        assert short.look(SLOW if second % 6 < 5 else EVEN, 0.5, float(second)) == []


@pytest.mark.parametrize("size", [2, 3, 4, 5, 64, 1024])
def test_the_median_is_that_of_the_others(size: int) -> None:
    own = np.random.default_rng(size).uniform(0.1, 0.2, size)
    own[size // 2] = 0.9
    one = Stragglers(1.5)
    said = [notice for _, notice in looks(one, own.tolist(), 1.0, 30)]
    found = {notice.rank: notice for notice in said}
    for rank in range(size):
        others = float(np.median(np.delete(own, rank)))
        assert (rank in found) == (own[rank] / others > 1.5 and own[rank] - others > 0.05)
        if rank in found:
            assert found[rank].others_s == pytest.approx(others)
            assert found[rank].ratio == pytest.approx(own[rank] / others)


def test_two_of_two_can_be_told_apart() -> None:
    """Against the median of both, neither of two ranks could ever be twice as slow."""
    ((_, notice),) = looks(Stragglers(1.5), [0.02, 0.22], 0.3, 30)
    assert (notice.rank, notice.ratio) == (1, pytest.approx(11.0))


def test_before_the_first_look() -> None:
    assert Stragglers(1.5).skew == 1.0
    assert Stragglers(1.5).look([0.0, 0.0], 0.0, 0.0) == []


def test_also_one_that_stands_in_the_middle_is_held_against_the_others_alone() -> None:
    one = Stragglers(1.5)
    looks(one, SLOW, 0.5, 20)
    ((_, notice),) = looks(one, [0.1, 0.14, 0.12, 0.16], 0.5, 30, start_s=20)
    assert notice == Notice(2, "recovered", 0.12, 0.14, pytest.approx(0.12 / 0.14))
