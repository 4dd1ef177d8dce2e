"""Every form is recovered from points without noise; an averaged loss with one start and default tolerance is not even near."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from truths import CHINCHILLA, PLANE, TRUTHS, points_of

from vitscale.scaling.approaches import approach, lowest
from vitscale.scaling.fit import fit
from vitscale.scaling.forms import FORMS
from vitscale.scaling.points import Points
from vitscale.scaling.solve import jacobian, solve


def test_every_form_has_a_truth() -> None:
    assert {name for name, _, _ in TRUTHS} == set(FORMS)


@pytest.mark.parametrize(("name", "values", "x"), TRUTHS, ids=[name for name, _, _ in TRUTHS])
def test_noise_free_points_give_the_parameters_back(name, values, x) -> None:
    found = fit(FORMS[name], points_of(name, values, x))
    assert found.params == pytest.approx(values, rel=1e-6)
    assert found.starts["agree"] >= 2


def test_an_averaged_loss_with_one_start_and_default_tolerance_is_far_off() -> None:
    """As published fits were made: the mean of Huber's function is so small that the optimizer stops at once."""
    points = points_of("chinchilla3", CHINCHILLA, PLANE)
    n, d, target = np.log(points.x["n"]), np.log(points.x["d"]), np.log(points.y)

    def averaged(theta: np.ndarray) -> float:
        e, a, b, alpha, beta = theta
        left = np.abs(target - np.logaddexp(np.logaddexp(e, a - alpha * n), b - beta * d))
        return float(np.mean(np.where(left <= 1e-3, left**2 / 2, 1e-3 * (left - 5e-4))))

    found = minimize(averaged, [0.5, 5, 5, 0.5, 0.5], method="L-BFGS-B")
    off = abs(np.exp(found.x[1]) / CHINCHILLA["A"] - 1)
    assert found.success
    assert off > 0.3
    assert fit(FORMS["chinchilla3"], points).params["A"] == pytest.approx(CHINCHILLA["A"], rel=1e-6)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_complex_steps_are_the_derivatives(name: str) -> None:
    """Against central differences, at a place that is not the optimum."""
    values, x = next((values, x) for one, values, x in TRUTHS if one == name)
    form, points = FORMS[name], points_of(name, values, x)
    centre = {role: float(np.mean(np.log(points.x[role]))) for role in form.variables}
    logs = {role: np.log(points.x[role]) - centre[role] for role in form.variables}
    theta = fit(form, points, starts=24).theta[None] * 1.05
    _, exact = jacobian(lambda at: form.predict(at, logs, centre), theta)
    for index in range(len(form.params)):
        step = np.zeros_like(theta)
        step[0, index] = 1e-5 * max(1.0, abs(theta[0, index]))
        rough = (form.predict(theta + step, logs, centre) - form.predict(theta - step, logs, centre)) / (2 * step[0, index])
        assert np.abs(rough[0] - exact[0, index]).max() < 1e-5 * max(1.0, np.abs(exact[0, index]).max())


def test_outliers_hardly_move_a_fit_and_are_named() -> None:
    points = points_of("chinchilla3", CHINCHILLA, PLANE, noise=0.002)
    y = points.y.copy()
    y[[3, 40]] *= 1.4
    clean, hurt = fit(FORMS["chinchilla3"], points), fit(FORMS["chinchilla3"], replace(points, y=y))
    assert set(hurt.outliers) >= {3, 40}
    assert hurt.params["alpha"] == pytest.approx(clean.params["alpha"], rel=0.05)


def test_a_fixed_parameter_stays_and_helps() -> None:
    points = points_of("m2", {"beta": 50, "c": 0.25, "e_inf": 0.1}, {"x": np.geomspace(1e6, 1e8, 6)}, noise=0.01)
    found = fit(FORMS["m2"], points, fixed={"e_inf": 0.1})
    assert found.params["e_inf"] == pytest.approx(0.1, rel=1e-12)
    assert found.params["c"] == pytest.approx(0.25, rel=0.1)


def test_rows_of_a_solution_do_not_know_of_each_other() -> None:
    target = np.array([1.0, 2.0, 3.0])

    def predict(theta):
        return theta[..., :1] + 0 * target

    both = solve(predict, np.stack([target, target + 5]), np.array([[0.0], [100.0]]), 10.0)
    assert both.theta[:, 0] == pytest.approx([2.0, 7.0])


def profiles_of(a: float, k: float) -> Points:
    """IsoFLOP profiles that are parabolas in logarithms, each lowest at k C^a."""
    rows = [
        (n, c / (6 * n), c, np.exp(1.5 - 0.05 * np.log(c) + 0.03 * np.log(n / (k * c**a)) ** 2))
        for c in np.geomspace(1e18, 1e21, 6)
        for n in k * c**a * np.geomspace(0.2, 5, 7)
    ]
    n, d, c, y = (np.array(column) for column in zip(*rows, strict=True))
    return Points({"n": n, "d": d, "c": c}, y, tuple(f"run-{i}" for i in range(len(n))), source="made")


def test_approach_2_gives_back_what_the_profiles_were_made_of() -> None:
    told = approach(profiles_of(0.49, 0.1), 2)
    assert told["n"]["a"]["value"] == pytest.approx(0.49, rel=1e-6)
    assert told["n"]["k"]["value"] == pytest.approx(0.1, rel=1e-6)
    assert told["d"]["b"]["value"] == pytest.approx(0.51, rel=1e-6)
    assert told["excluded"] == []


def test_approach_2_leaves_out_a_budget_without_an_optimum_and_says_so() -> None:
    points = profiles_of(0.49, 0.1)
    least = points.x["c"] < 2e18
    cut = points.take(~least | (points.x["n"] > 0.1 * points.x["c"] ** 0.49 * 1.1))
    told = approach(cut, 2)
    assert len(told["optima"]) == 5
    assert "outside of the values tried" in told["excluded"][0]["reason"]
    assert told["n"]["a"]["value"] == pytest.approx(0.49, rel=1e-6)


def test_approach_1_finds_the_exponent_of_the_envelope() -> None:
    """Of sizes in equal steps the stretches that each is best for scale exactly as the optimum does."""
    rows = []
    for n in np.geomspace(1e7, 1e10, 10):
        best = (
            6
            * n
            * (CHINCHILLA["beta"] * CHINCHILLA["B"] / (CHINCHILLA["alpha"] * CHINCHILLA["A"]) * n ** CHINCHILLA["alpha"])
            ** (1 / CHINCHILLA["beta"])
        )
        c = np.geomspace(best / 300, best * 300, 400)
        d = c / (6 * n)
        rows += list(
            zip(
                [n] * 400,
                d,
                c,
                CHINCHILLA["E"] + CHINCHILLA["A"] / n ** CHINCHILLA["alpha"] + CHINCHILLA["B"] / d ** CHINCHILLA["beta"],
                [f"size-{n:.3g}"] * 400,
                strict=True,
            )
        )
    n, d, c, y, run = zip(*rows, strict=True)
    points = Points({"n": np.array(n), "d": np.array(d), "c": np.array(c)}, np.array(y), run, source="made")
    told = approach(points, 1, draws=20)
    a = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])
    assert told["n"]["a"]["value"] == pytest.approx(a, rel=1e-5)
    assert len(told["optima"]) == 8


def test_a_parabola_says_why_it_has_no_lowest_point() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    assert "does not bend" in lowest(x, np.exp(-(np.log(x) ** 2)))
    assert "fewer than three" in lowest(x[:2], x[:2])
    found = lowest(x, np.exp((np.log(x) - np.log(3)) ** 2))
    assert not isinstance(found, str)
    assert found[:2] == pytest.approx((3.0, 1.0))
