"""How sure a fit is: intervals that cover, what is not identified, what drives a fit; and the same numbers each time."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from truths import CHINCHILLA, PLANE, points_of

from vitscale.errors import DataError
from vitscale.scaling.analyse import FitRequest, analyse, split
from vitscale.scaling.backtest import backtest, budgets_in, order_of, origins
from vitscale.scaling.command import write_analysis
from vitscale.scaling.fit import fit
from vitscale.scaling.forms import FORMS
from vitscale.scaling.intervals import Draws, bootstrap, influence, log_prediction, outer_of, profile
from vitscale.scaling.optimum import best_for, budget_of, flops_per_sample, most_informative
from vitscale.scaling.points import Points


def test_bootstrap_and_profile_agree_with_least_squares_where_that_is_known() -> None:
    """A straight line through logarithms: its slope's standard error has a formula."""
    x = np.geomspace(1e3, 1e9, 60)
    points = points_of("m1", {"beta": 50, "c": 0.25}, {"x": x}, noise=0.05, seed=3)
    found = fit(FORMS["m1"], points, delta=10.0)  # so wide that it is least squares
    residual, u = found.residuals, np.log(x)
    error = np.sqrt(residual @ residual / (len(x) - 2) / ((u - u.mean()) ** 2).sum())
    of = outer_of(found, "c")
    draws = bootstrap(found, 800)
    assert draws.deviation(of) == pytest.approx(error, rel=0.25)
    known = profile(found, draws, of, found.params["c"], 2 * error)
    assert (known.high - known.low) / 2 == pytest.approx(2.0 * error, rel=0.02)  # Student's t of 58 degrees of freedom


def test_an_interval_leaves_out_as_much_on_either_side() -> None:
    fitted = fit(FORMS["m1"], points_of("m1", {"beta": 50, "c": 0.25}, {"x": np.geomspace(1e3, 1e9, 10)}))
    draws = Draws(fitted, np.arange(1001.0)[:, None])
    assert draws.interval(lambda theta: theta[:, 0]) == pytest.approx((25, 975))
    assert draws.interval(lambda theta: theta[:, 0], level=0.5) == pytest.approx((250, 750))


def test_a_backtest_leaves_something_to_judge() -> None:
    line = points_of("m1", {"beta": 50, "c": 0.25}, {"x": np.geomspace(1e3, 1e9, 9)})
    for points in (points_of("chinchilla3", CHINCHILLA, PLANE), line):
        order, at = order_of(points), origins(points, 3)
        assert at
        assert all((order <= level).sum() >= 3 and (order > level).any() for level in at)


def test_points_of_one_run_are_one_draw() -> None:
    """Fourfold copies of each point are no more data: intervals by run stay, by point they would halve."""
    points = points_of("m1", {"beta": 50, "c": 0.25}, {"x": np.geomspace(1e3, 1e9, 30)}, noise=0.05)
    copies = points.take(np.repeat(np.arange(30), 4))
    alone, together = (bootstrap(fit(FORMS["m1"], one)) for one in (points, copies))
    strangers = bootstrap(fit(FORMS["m1"], replace(copies, run=tuple(f"run-{i}" for i in range(120)))))
    single = alone.deviation(outer_of(alone.fit, "c"))
    assert together.deviation(outer_of(together.fit, "c")) == pytest.approx(single, rel=0.15)
    assert strangers.deviation(outer_of(strangers.fit, "c")) == pytest.approx(single / 2, rel=0.2)


@pytest.mark.slow  # 40 simulated fits with 200 draws each
def test_intervals_cover_what_is_true() -> None:
    """The small form of benchmarks/scaling.py; of 40 intervals of 95 % fewer than 33 would be a fault (p < 0.001), all 40 are possible."""
    true = 0.25
    inside = {"bootstrap": 0, "profile": 0}
    for seed in range(40):
        found = fit(
            FORMS["m2"], points_of("m2", {"beta": 50, "c": true, "e_inf": 0.3}, {"x": np.geomspace(1e3, 1e10, 40)}, 0.03, seed), starts=24
        )
        draws = bootstrap(found, 200)
        of = outer_of(found, "c")
        low, high = draws.interval(of)
        inside["bootstrap"] += low <= true <= high
        known = profile(found, draws, of, found.params["c"], 2 * draws.deviation(of))
        inside["profile"] += (known.low or -np.inf) <= true <= (known.high or np.inf)
    assert inside["bootstrap"] >= 33, inside
    assert inside["profile"] >= 33, inside


def test_a_floor_far_below_the_points_is_not_identified() -> None:
    points = points_of("m1", {"beta": 50, "c": 0.25}, {"x": np.geomspace(1e3, 1e5, 15)}, noise=0.05)
    told = analyse(points, FitRequest(forms=("m2",), draws=100)).told["fits"]["m2"]
    assert told["parameters"]["e_inf"]["identified"] is False
    assert any("e_inf is not identified" in warning for warning in told["warnings"])
    assert told["parameters"]["e_inf"]["profile"][0] is None


def test_a_point_that_drives_the_fit_is_named() -> None:
    """One far point alone says how the line leans, and says it wrongly."""
    x = np.append(np.geomspace(1e3, 2e3, 12), 1e9)
    points = points_of("m1", {"beta": 50, "c": 0.25}, {"x": x}, noise=0.02)
    found = fit(FORMS["m1"], points, delta=10.0)
    told = influence(found, bootstrap(found, 200))
    assert told
    assert told[0]["run"] == "run-012"


def test_the_same_points_give_the_same_bytes(tmp_path: Path) -> None:
    points = points_of("chinchilla3", CHINCHILLA, PLANE, noise=0.01)
    shuffled = points.take(np.arange(len(points)))
    for name, one in (("a", points), ("b", shuffled)):
        write_analysis(analyse(one, FitRequest(forms=("chinchilla3",), draws=60)), tmp_path / name)
    assert (tmp_path / "a" / "fit.json").read_bytes() == (tmp_path / "b" / "fit.json").read_bytes()
    told = json.loads((tmp_path / "a" / "fit.json").read_text())
    assert told["data"]["sha256"] == points.hash() == points.take(np.arange(len(points))[::-1]).hash()
    y = points.y.copy()
    y[0] *= 1 + 1e-15
    assert replace(points, y=np.nextafter(points.y, 9)).hash() != points.hash()


@pytest.mark.parametrize("truth", ["m2", "m4"])
def test_the_backtest_chooses_the_law_that_the_points_follow(truth: str) -> None:
    values = {"m2": {"beta": 50, "c": 0.25, "e_inf": 0.5}, "m4": {"beta": 500, "c": 0.35, "alpha": 0.6, "e_inf": 0.1, "e_0": 2.0}}[truth]
    points = points_of(truth, values, {"x": np.geomspace(1e6, 1e10, 30)})
    told = backtest(points, [FORMS[name] for name in ("m1", "m2", "m4")])
    assert told.chosen == truth or told.scores[truth] < 1e-6
    assert told.scores["m1"] > 10 * told.scores[truth]
    assert sum(told.weights.values()) == pytest.approx(1)


def test_a_law_that_fits_better_in_sample_may_predict_worse() -> None:
    """In the sample more parameters always win; the backtest may not follow them."""
    points = points_of("m1", {"beta": 50, "c": 0.25}, {"x": np.geomspace(1e3, 1e8, 16)}, noise=0.03, seed=5)
    found = analyse(points, FitRequest(forms=("m1", "broken1"), draws=50, intervals=False))
    told = found.told
    assert told["fits"]["broken1"]["objective"] < 2 * told["fits"]["m1"]["objective"]
    assert told["chosen"] == "m1"


def planned(noise: float = 0.003):
    rows = [(n, c / (6 * n), c) for c in np.geomspace(1e18, 1e21, 5) for n in 0.09 * c**0.5 * np.geomspace(0.2, 5, 6)]
    n, d, c = (np.array(column) for column in zip(*rows, strict=True))
    points = points_of("chinchilla3", CHINCHILLA, {"n": n, "d": d, "c": c}, noise=noise)
    found = fit(FORMS["chinchilla3"], points)
    return found, bootstrap(found, 100)


def test_the_optimum_is_that_of_the_formula() -> None:
    """N* = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / beta B)^(1 / (alpha + beta)): Hoffmann et al. 2022, equation 4."""
    found, draws = planned(noise=0.0)
    p, c = CHINCHILLA, 1e22
    power = p["alpha"] + p["beta"]
    best_n = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / power) * (c / 6) ** (p["beta"] / power)
    best = best_for(found, draws, flops_per_sample(found.points), c)
    assert best.n[0] == pytest.approx(best_n, rel=0.02)  # a step of the grid
    assert best.n[0] * best.d[0] * 6 == pytest.approx(c, rel=1e-9)
    assert not best.at_edge


def test_who_is_asked_often_wants_a_smaller_model_trained_for_longer() -> None:
    found, draws = planned()
    alone = best_for(found, draws, flops_per_sample(found.points), 1e22)
    served = best_for(found, draws, flops_per_sample(found.points), 1e22, serve=1e12)
    assert served.n[0] < 0.8 * alone.n[0]
    assert served.d[0] / served.n[0] > alone.d[0] / alone.n[0]
    assert alone.n[1] < alone.n[0] < alone.n[2]


def test_the_most_informative_run_really_narrows_the_prediction() -> None:
    """Chosen by the draws' covariances; checked by adding it, and the least informative one, and fitting again."""
    found, draws = planned()
    per_sample = flops_per_sample(found.points)
    target = best_for(found, draws, per_sample, 1e23)
    candidates = [{"n": float(n), "d": float(c / 6 / n)} for n in np.geomspace(5e7, 5e9, 5) for c in (1e19, 1e21)]
    told = most_informative(found, draws, per_sample, target, candidates)
    assert [one["gain_per_flop"] for one in told] == sorted((one["gain_per_flop"] for one in told), reverse=True)
    assert all(one["deviation_after"] <= one["deviation_now"] for one in told)
    of = log_prediction(found, {"n": target.n[0], "d": target.d[0]})
    assert told[0]["deviation_now"] == pytest.approx(draws.deviation(of), rel=0.05)


@pytest.mark.parametrize(
    ("text", "flop"),
    [
        ("1e21", 1e21),
        ("1e21 FLOP", 1e21),
        ("500 GPU-hours on H100", 500 * 3600 * 989e12 * 0.4),
        ("100 EUR at 2 on A100", 50 * 3600 * 312e12 * 0.4),
    ],
)
def test_budgets_as_people_say_them(text: str, flop: float) -> None:
    assert budget_of(text)[0] == pytest.approx(flop)


def test_runs_of_one_budget_are_not_torn_apart() -> None:
    """Whole batches make their FLOPs differ a little: training ends behind a budget, not within one."""
    c = np.array([2.1e9, 1e9, 0.99e9, 1.01e9, 2e9, 4e9, 1.18e9])
    y, run = np.ones(7), tuple("abcdefg")
    assert budgets_in(Points({"c": c}, y, run)) == [1.18e9, 2.1e9, 4e9]
    assert budgets_in(Points({"n": c, "d": np.ones(7)}, y, run)) == [1.18e9, 2.1e9, 4e9]
    assert budgets_in(Points({"x": c}, y, run)) == sorted(c)      # another variable's values are what they are
    rng = np.random.default_rng(0)
    budgets = np.repeat(np.geomspace(1e18, 1e21, 7), 6)
    n = np.tile(np.geomspace(0.3, 3, 6), 7) * 0.1 * np.sqrt(budgets)
    points = points_of("chinchilla3", CHINCHILLA, {"n": n, "d": budgets * rng.uniform(0.95, 1.05, len(n)) / (6 * n)}, 0.01, 0)
    told = backtest(points, [FORMS["chinchilla3"], FORMS["log_log"]])
    assert {row["points_before"] % 6 for row in told.rows} == {0}
    assert {row["points_after"] % 6 for row in told.rows} == {0}
    for share in (0.01, 0.2, 0.3):
        kept, held_out = split(points, share)
        assert held_out is not None
        assert len(kept) % 6 == 0
        assert len(kept) + len(held_out) == len(points)
        assert kept.x["d"].dot(kept.x["n"]) < held_out.x["d"].dot(held_out.x["n"])
        assert share <= len(held_out) / len(points) < share + 1 / 7
    with pytest.raises(DataError, match="leaves nothing to fit"):
        split(points, 0.9)
