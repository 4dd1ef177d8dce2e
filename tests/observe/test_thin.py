"""Few points for many: no peak is lost, means are means, and what a restart repeats counts once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitscale.observe.dashboard.thin import chosen, last_of_each, plain, thin


@given(values=arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6)), points=st.integers(1, 50))
def test_peaks_and_means_stay(values: np.ndarray, points: int) -> None:
    made = thin(np.arange(len(values), dtype=float), {"y": values}, points)
    series = made["series"]["y"]
    high, low = series.get("high", series["mean"]), series.get("low", series["mean"])
    assert len(made["x"]) <= max(points, 1)
    assert max(high) == pytest.approx(values.max(), rel=1e-5, abs=1e-9)
    assert min(low) == pytest.approx(values.min(), rel=1e-5, abs=1e-9)
    assert all(a - 1e-4 * abs(a) - 1e-9 <= b <= c + 1e-4 * abs(c) + 1e-9 for a, b, c in zip(low, series["mean"], high, strict=True))


def test_nothing_is_thinned_that_fits() -> None:
    made = thin(np.array([0.0, 1, 2]), {"y": np.array([1.0, np.nan, 3])}, 3)
    assert made == {"x": [0, 1, 2], "series": {"y": {"mean": [1, None, 3]}}, "rows": 3}


def test_empty_pieces_are_left_out_and_a_restart_is_a_gap() -> None:
    x = np.concatenate([np.arange(100.0), 1000 + np.arange(100.0)])
    made = thin(x, {"y": np.ones(200)}, 20, breaks=np.repeat([1.0, 2.0], 100))
    assert len(made["x"]) < 20
    gap = made["series"]["y"]["mean"].index(None)
    assert made["x"][gap - 1] < 100 < made["x"][gap] < 1000 <= made["x"][gap + 1]
    assert made["series"]["y"]["high"][gap] is None


def test_of_repeated_steps_the_later_rows_count() -> None:
    step = np.array([1.0, 2, 3, 4, 5, 3, 4, 5, 6])
    assert last_of_each(step).tolist() == [True, True, False, False, False, True, True, True, True]
    assert last_of_each(np.array([])).tolist() == []


def test_the_slowest_row_of_each_piece_is_chosen() -> None:
    weight = np.zeros(1000)
    weight[[17, 333, 998]] = 1
    rows = chosen(np.arange(1000.0), weight, 10)
    assert len(rows) == 10
    assert {17, 333, 998} <= set(rows.tolist())


def test_six_digits_and_no_nan() -> None:
    assert plain(np.array([123456789.123, -0.00012345678, 0.0, np.nan])) == [123457000.0, -0.000123457, 0.0, None]
