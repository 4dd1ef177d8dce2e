"""Points of a law that is known, with or without noise."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vitscale.scaling.form import Form
from vitscale.scaling.forms import FORMS
from vitscale.scaling.points import Points

SIZES, SAMPLES = (grid.ravel() for grid in np.meshgrid(np.geomspace(5e7, 1.6e10, 9), np.geomspace(1e9, 3e11, 9)))
ONE = np.geomspace(1e6, 1e10, 25)
SHAPES, COMPUTE = (grid.ravel() for grid in np.meshgrid(np.geomspace(100, 4000, 9), np.geomspace(1, 300, 6)))
PLANE = {"n": SIZES, "d": SAMPLES}
# Besiroglu et al. 2024, table 1
CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}

TRUTHS: list[tuple[str, dict[str, float], Mapping[str, np.ndarray]]] = [
    ("chinchilla3", CHINCHILLA, PLANE),
    (
        "data_constrained",
        {"E": 1.87, "A": 521, "B": 1488, "alpha": 0.35, "beta": 0.35, "R_D": 15.4, "R_N": 5.3},
        PLANE | {"u": np.where(np.arange(81) % 3 == 0, SAMPLES, np.minimum(SAMPLES, 3e9))},
    ),
    ("log_log", {"k_0": -0.3, "k_n": 0.02, "k_d": 0.03, "k_nd": 0.0005}, PLANE),
    ("power2", {"k": 3e3, "a": -0.7, "b": 0.3}, PLANE),
    ("m1", {"beta": 50, "c": 0.25}, {"x": ONE}),
    ("m2", {"beta": 50, "c": 0.25, "e_inf": 0.1}, {"x": ONE}),
    ("m3", {"beta": 50, "c": 0.25, "gamma": 3e-10}, {"x": ONE}),
    ("m4", {"beta": 500, "c": 0.35, "alpha": 0.6, "e_inf": 0.1, "e_0": 2.0}, {"x": ONE}),
    ("saturating", {"a": 50, "b": 0.25, "c": 0.1, "d": 5e6}, {"x": ONE}),
    ("broken1", {"a": 0.05, "b": 3, "c_0": 0.05, "c_1": 0.3, "d_1": 1e8, "f_1": 0.4}, {"x": ONE}),
    (
        "broken2",
        {"a": 0.05, "b": 3, "c_0": 0.05, "c_1": 0.3, "d_1": 3e7, "f_1": 0.3, "c_2": -0.2, "d_2": 1e9, "f_2": 0.3},
        {"x": np.geomspace(1e5, 1e11, 60)},
    ),
    ("shape", {"alpha": 2.0, "a": 0.6, "beta": 1e-3, "b": 0.7, "xi": 0.5, "c": 0.45, "eps": 0.1}, {"x": SHAPES, "t": COMPUTE}),
]


def inner(form: Form, values: Mapping[str, float]) -> np.ndarray:
    """Outer values -> theta (1, P) of variables that are not centred."""
    given = dict(values)
    if form.name == "m4":
        given["e_0"] -= given["e_inf"]
    return np.array([[np.log(given[name]) if name in form.positive else given[name] for name in form.params]])


def points_of(name: str, values: Mapping[str, float], x: Mapping[str, np.ndarray], noise: float = 0.0, seed: int = 0) -> Points:
    form = FORMS[name]
    told = form.predict(inner(form, values), {role: np.log(x[role]) for role in form.variables}, dict.fromkeys(form.variables, 0.0))[0]
    rises = form.link == "identity"
    y = 1 - told if rises else np.exp(told)
    points = Points(
        x, y, tuple(f"run-{i:03d}" for i in range(len(y))), "accuracy" if rises else "loss", 1.0 if rises else None, source="made"
    )
    return replace(points, y=y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(y))))
