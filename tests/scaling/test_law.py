"""A law from the numbers that a fit wrote down says what the fit says."""

import numpy as np
import pytest

from vitscale.scaling.fit import fit
from vitscale.scaling.forms import FORMS
from vitscale.scaling.law import law_at
from vitscale.scaling.points import make_points


@pytest.mark.parametrize("name", ["chinchilla3", "data_constrained", "log_log", "power2"])
def test_numbers_of_a_fit_give_its_law(name: str) -> None:
    rows = [
        {"where": f"{n}-{d}", "run": f"{n}-{d}", "n": n, "d": d, "u": min(d, 3e5), "metric": 0.4 + 30 / n**0.35 + 25 / d**0.3}
        for n in (1e5, 3e5, 1e6, 3e6)
        for d in (1e5, 4e5, 2e6)
    ]
    found = fit(FORMS[name], make_points(rows, roles=("n", "d", "u"), metric="loss"), starts=24)
    x = {"n": np.array([2e5, 5e6]), "d": np.array([3e6, 2e5]), "u": np.array([3e5, 2e5])}
    told = law_at(name, found.params, x)
    assert told is not None
    np.testing.assert_allclose(told, found.predict(x), rtol=1e-6)


def test_what_makes_no_law_is_told() -> None:
    x = {"n": np.array([1e6]), "d": np.array([1e6])}
    params = {"E": 1.0, "A": 2.0, "B": 3.0, "alpha": 0.3, "beta": 0.3}
    assert law_at("chinchilla3", params, x) is not None
    assert law_at("no such", params, x) is None
    assert law_at("chinchilla3", {"E": 1.0}, x) is None
    assert law_at("chinchilla3", params | {"A": -2.0}, x) is None
    assert law_at("chinchilla3", params | {"alpha": np.nan}, x) is None
    assert law_at("chinchilla3", params, {"n": x["n"]}) is None
