"""The forms of scaling laws, each a function of its parameters and of the logarithms of its variables (form.py).  Pure numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitscale.scaling.form import Centre, Column, Form, Logs, even_spread, linear_part, log_sum
from vitscale.scaling.solve import Array

# -- two variables: size of the model and samples


def _chinchilla(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    e, a, b, alpha, beta = p
    return log_sum(e + 0 * logs["n"], a - alpha * logs["n"], b - beta * logs["d"])


def _chinchilla_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    return p | {"A": p["A"] * np.exp(p["alpha"] * centre["n"]), "B": p["B"] * np.exp(p["beta"] * centre["d"])}


def _chinchilla_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    powers = even_spread(rng, count, (0.05, 1.5), (0.05, 1.5))
    columns = np.stack([np.ones((count, len(y))), np.exp(-powers[:, :1] * logs["n"]), np.exp(-powers[:, 1:] * logs["d"])], axis=2)
    return np.concatenate([np.log(linear_part(columns, y)), powers], axis=1)


CHINCHILLA = Form("chinchilla3", "L = E + A / N^alpha + B / D^beta", "Hoffmann et al. 2022, approach 3, equation 2; Besiroglu et al. 2024",
                  ("n", "d"), ("E", "A", "B", "alpha", "beta"), frozenset("EAB"), _chinchilla, _chinchilla_shift, _chinchilla_guess,
                  delta=1e-3)


def effective(p: Sequence[Column], logs: Logs, centre: Centre) -> tuple[Any, Any]:
    """log N' and log D' of the data-constrained law (Muennighoff et al. 2023, equations 5 to 8), in inner units.

    D' = U + U R (1 - exp(-(D / U - 1) / R)): each further pass over U unique samples is worth less.  N' likewise, U_N being the size
    that would be optimal for U samples seen once.
    """
    _, a, b, alpha, beta, log_rd, log_rn = p
    log_u = np.minimum(logs["d"] + centre["d"], logs["u"] + centre["u"])
    rounds = np.expm1(np.maximum(logs["d"] + centre["d"] - log_u, 0.0))
    rd, rn = np.exp(log_rd), np.exp(log_rn)
    log_data = log_u + np.log1p(rd * -np.expm1(-rounds / rd))
    # The optimum of E + A N^-alpha + B U^-beta under N U = const: N = (alpha A / beta B)^(1 / alpha) U^(beta / alpha).
    log_big_a, log_big_b = a + alpha * centre["n"], b + beta * centre["d"]
    log_best = (np.log(alpha / beta) + log_big_a - log_big_b + beta * log_u) / alpha
    log_n = logs["n"] + centre["n"]
    over = np.real(log_best) < log_n
    surplus = np.where(over, np.exp(np.where(over, log_n - log_best, 0.0)) - 1, 0.0)
    log_size = np.where(over, log_best, log_n) + np.log1p(rn * -np.expm1(-surplus / rn))
    return log_size - centre["n"], log_data - centre["d"]


def _constrained(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    size, data = effective(p, logs, centre)
    e, a, b, alpha, beta = p[:5]
    return log_sum(e + 0 * size, a - alpha * size, b - beta * data)


def _constrained_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    powers = even_spread(rng, count, (0.1, 1.2), (0.1, 1.2), (np.log(1.0), np.log(60.0)), (np.log(1.0), np.log(60.0)))
    columns = np.stack([np.ones((count, len(y))), np.exp(-powers[:, :1] * logs["n"]), np.exp(-powers[:, 1:2] * logs["d"])], axis=2)
    return np.concatenate([np.log(linear_part(columns, y)), powers], axis=1)


CONSTRAINED = Form("data_constrained",
                   "L = E + A / N'^alpha + B / D'^beta, D' = U + U R_D (1 - exp(-(D / U - 1) / R_D)), N' likewise with R_N",
                   "Muennighoff et al. 2023, section 3.1", ("n", "d", "u"), ("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
                   frozenset({"E", "A", "B", "R_D", "R_N"}), _constrained, _chinchilla_shift, _constrained_guess, delta=1e-3)


def _logs_product(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    return p[0] + p[1] * logs["n"] + p[2] * logs["d"] + p[3] * logs["n"] * logs["d"]


def _logs_product_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    n, d, k = centre["n"], centre["d"], p["k_nd"]
    return {"k_0": p["k_0"] - p["k_n"] * n - p["k_d"] * d + k * n * d, "k_n": p["k_n"] - k * d, "k_d": p["k_d"] - k * n, "k_nd": k}


def _logs_product_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    columns = np.stack([np.ones(len(y)), logs["n"], logs["d"], logs["n"] * logs["d"]], axis=1)
    best = np.linalg.lstsq(columns, y, rcond=None)[0]
    return best + even_spread(rng, min(count, 8), *[(-0.1, 0.1)] * 4)


LOGS_PRODUCT = Form("log_log", "metric = k_0 + k_n ln N + k_d ln D + k_nd ln N ln D",
                    "the rule of thumb: accuracy goes as log(model) x log(data)", ("n", "d"), ("k_0", "k_n", "k_d", "k_nd"), frozenset(),
                    _logs_product, _logs_product_shift, _logs_product_guess, link="identity")


def _power2(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    return p[0] + p[1] * logs["n"] + p[2] * logs["d"]


def _power2_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    return p | {"k": p["k"] * np.exp(-p["a"] * centre["n"] - p["b"] * centre["d"])}


def _power2_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    best = np.linalg.lstsq(np.stack([np.ones(len(y)), logs["n"], logs["d"]], axis=1), np.log(y), rcond=None)[0]
    return best + even_spread(rng, min(count, 8), *[(-0.1, 0.1)] * 3)


POWER2 = Form("power2", "y = k N^a D^b",
              "of optimal learning rate and batch: Bi et al. 2024 (DeepSeek LLM), section 3.1; Li et al. 2025, Step law", ("n", "d"),
              ("k", "a", "b"), frozenset("k"), _power2, _power2_shift, _power2_guess)


# -- one variable


def _m1(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    return p[0] - p[1] * logs["x"]


def _scaled(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    return p | {"beta": p["beta"] * np.exp(p["c"] * centre["x"])}


def _m1_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    slope, level = np.polyfit(logs["x"], np.log(y), 1)
    return np.array([level, -slope]) + even_spread(rng, min(count, 8), (-0.1, 0.1), (-0.1, 0.1))


M1 = Form(
    "m1", "y = beta x^-c", "M1 of Alabdulmohsin et al. 2022, section 3", ("x",), ("beta", "c"), frozenset({"beta"}), _m1, _scaled, _m1_guess
)


def _m2(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    return log_sum(p[0] - p[1] * logs["x"], p[2] + 0 * logs["x"])


def _m2_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    powers = even_spread(rng, count, (0.02, 2.0))
    columns = np.stack([np.exp(-powers * logs["x"]), np.ones((count, len(y)))], axis=2)
    found = np.log(linear_part(columns, y))
    return np.stack([found[:, 0], powers[:, 0], found[:, 1]], axis=1)


M2 = Form("m2", "y = beta x^-c + e_inf", "M2 of Alabdulmohsin et al. 2022, section 3", ("x",), ("beta", "c", "e_inf"),
          frozenset({"beta", "e_inf"}), _m2, _scaled, _m2_guess)


def _m3(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    return p[0] + p[1] * log_sum(-logs["x"] + 0 * p[2], p[2] + 0 * logs["x"])


def _m3_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    return _scaled(p, centre) | {"gamma": p["gamma"] * np.exp(-centre["x"])}


def _m3_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    low, high = -logs["x"].max() - 4, -logs["x"].min()
    drawn = even_spread(rng, count, (0.05, 2.0), (low, high))
    shape = drawn[:, :1] * log_sum(-logs["x"][None] + 0 * drawn[:, 1:], drawn[:, 1:] + 0 * logs["x"])
    return np.concatenate([(np.log(y) - shape).mean(axis=1, keepdims=True), drawn], axis=1)


M3 = Form("m3", "y = beta (1 / x + gamma)^c", "M3 of Alabdulmohsin et al. 2022, section 3; Bansal et al. 2022", ("x",),
          ("beta", "c", "gamma"), frozenset({"beta", "gamma"}), _m3, _m3_shift, _m3_guess)


def _m4(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    """y between e_inf and e_0 as y = e_inf + (e_0 - e_inf) s with the share s by its log-odds, where Newton's steps find it."""
    beta, c, alpha, floor, gap = p  # gap: log of e_0 - e_inf; alpha a logarithm
    alpha = np.exp(alpha)
    # log s - alpha log(1 - s) = wanted, with s = 1 / (1 + exp(-z)): log s = -softplus(-z), log(1 - s) = -softplus(z) = -softplus(-z) - z.
    wanted = beta - c * logs["x"] + (alpha - 1) * gap
    real_wanted, real_alpha = np.real(wanted), np.real(alpha)
    if real_wanted.ndim == 3:  # of a Jacobian: what has moved has moved by nothing that is real
        real_wanted, real_alpha = real_wanted[:, :1], real_alpha[:, :1]
    z = np.where(real_wanted > 0, real_wanted / real_alpha, real_wanted)
    for _ in range(20):
        small = np.exp(-np.abs(z))  # of it both softplus and the share are made: this loop is nearly all that a fit of M4 takes
        minus = np.log1p(small) - np.minimum(z, 0)
        share = np.where(z < 0, small, 1.0) / (1 + small)
        step = ((real_alpha - 1) * minus + real_alpha * z - real_wanted) / ((1 - share) + real_alpha * share)
        z = np.clip(z - step, -600, 600)
        if not np.any(np.abs(step) > 1e-7 * (1 + np.abs(z))):  # each step doubles the digits, and one more follows below
            break
    z = np.where(np.abs(step) < 1e-7 * (1 + np.abs(z)), z, np.nan)
    share = 1 / (1 + np.exp(-z))
    # One more step with the parameters as they are: the imaginary part is then exact to first order (the implicit function theorem).
    excess = -np.logaddexp(0, -z) + alpha * np.logaddexp(0, z) - wanted
    z = z - excess / ((1 - share) + real_alpha * share)
    return log_sum(floor + 0 * logs["x"], gap - log_sum(0 * z, -z))


def _m4_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    return _scaled(p, centre) | {"e_0": p["e_0"] + p["e_inf"]}


def _m4_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    drawn = even_spread(rng, count, (0.1, 2.0), (-1.5, 1.5), (-5.0, -0.01), (0.01, 2.0))
    floor = y.min() * (1 - np.exp(drawn[:, 2]))
    floor = np.maximum(floor, 1e-3 * y.min())
    top = y.max() * np.exp(drawn[:, 3])
    alpha = np.exp(drawn[:, 1])
    z = np.log(y - floor[:, None]) - alpha[:, None] * np.log(top[:, None] - y)
    level = (z + drawn[:, :1] * logs["x"]).mean(axis=1)
    return np.stack([level, drawn[:, 0], drawn[:, 1], np.log(floor), np.log(top - floor)], axis=1)


M4 = Form("m4", "(y - e_inf) / (e_0 - y)^alpha = beta x^-c", "M4 of Alabdulmohsin et al. 2022, section 3", ("x",),
          ("beta", "c", "alpha", "e_inf", "e_0"), frozenset({"beta", "alpha", "e_inf", "e_0"}), _m4, _m4_shift, _m4_guess)


def _saturating(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    a, b, c, d = p
    return log_sum(a - b * log_sum(logs["x"] + 0 * d, d + 0 * logs["x"]), c + 0 * logs["x"])


def _saturating_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    return p | {"a": p["a"] * np.exp(p["b"] * centre["x"]), "d": p["d"] * np.exp(centre["x"])}


def _saturating_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    drawn = even_spread(rng, count, (0.05, 2.0), (logs["x"].min() - 4, logs["x"].max()))
    shape = np.exp(-drawn[:, :1] * log_sum(logs["x"] + 0 * drawn[:, 1:], drawn[:, 1:] + 0 * logs["x"]))
    found = np.log(linear_part(np.stack([shape, np.ones_like(shape)], axis=2), y))
    return np.stack([found[:, 0], drawn[:, 0], found[:, 1], drawn[:, 1]], axis=1)


SATURATING = Form("saturating", "y = a (x + d)^-b + c", "Zhai et al. 2022, section 2.1, equation 1", ("x",), ("a", "b", "c", "d"),
                  frozenset({"a", "c", "d"}), _saturating, _saturating_shift, _saturating_guess)


def _broken(breaks: int) -> Form:
    names = [name for i in range(1, breaks + 1) for name in (f"c_{i}", f"d_{i}", f"f_{i}")]

    def log_value(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
        bent = p[1] - p[2] * logs["x"]
        for i in range(breaks):
            c, d, f = p[3 + 3 * i : 6 + 3 * i]
            width = np.exp(f)
            bent = bent - c * width * log_sum(0 * logs["x"] + 0 * d, (logs["x"] - d) / width)
        return log_sum(p[0] + 0 * logs["x"], bent)

    def shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
        return (
            p | {"b": p["b"] * np.exp(p["c_0"] * centre["x"])} | {f"d_{i}": p[f"d_{i}"] * np.exp(centre["x"]) for i in range(1, breaks + 1)}
        )

    def guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
        low, high = logs["x"].min(), logs["x"].max()
        per = [(-0.5, 1.0), (low, high), (-2.0, 0.5)]
        drawn = even_spread(rng, count, (0.02, 1.5), *per * breaks)
        places = np.sort(drawn[:, 2::3], axis=1)
        drawn[:, 2::3] = places
        bent = -drawn[:, :1] * logs["x"]
        for i in range(breaks):
            c, d, f = (drawn[:, 1 + 3 * i + k, None] for k in range(3))
            bent = bent - c * np.exp(f) * np.logaddexp(0, (logs["x"] - d) / np.exp(f))
        found = np.log(linear_part(np.stack([np.ones_like(bent), np.exp(bent)], axis=2), y))
        return np.concatenate([found, drawn], axis=1)

    return Form(f"broken{breaks}", "y = a + b x^-c_0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i)", "Caballero et al. 2022, equation 1",
                ("x",), ("a", "b", "c_0", *names), frozenset({"a", "b", *(f"{k}_{i}" for i in range(1, breaks + 1) for k in "df")}),
                log_value, shift, guess)


BROKEN1, BROKEN2 = _broken(1), _broken(2)


# -- shape and compute


def _shape(p: Sequence[Column], logs: Logs, centre: Centre) -> Any:
    alpha, a, beta, b, xi, c, eps = p
    x, t = logs["x"], logs["t"]
    return log_sum(alpha - a * x, beta + b * x - c * t, xi - c * t, eps + 0 * x)


def _shape_shift(p: dict[str, Any], centre: Centre) -> dict[str, Any]:
    x, t = centre["x"], centre["t"]
    return p | {"alpha": p["alpha"] * np.exp(p["a"] * x), "beta": p["beta"] * np.exp(p["c"] * t - p["b"] * x),
                "xi": p["xi"] * np.exp(p["c"] * t)}


def _shape_guess(logs: Logs, y: Array, centre: Centre, rng: np.random.Generator, count: int) -> Array:
    powers = even_spread(rng, count, (0.1, 2.0), (0.1, 2.0), (0.1, 1.5))
    x, t = logs["x"], logs["t"]
    fall, rise, time = np.exp(-powers[:, :1] * x), np.exp(powers[:, 1:2] * x), np.exp(-powers[:, 2:] * t)
    found = np.log(linear_part(np.stack([fall, rise * time, time, np.ones_like(fall)], axis=2), y))
    return np.stack([found[:, 0], powers[:, 0], found[:, 1], powers[:, 1], found[:, 2], powers[:, 2], found[:, 3]], axis=1)


SHAPE = Form("shape", "y = alpha x^-a + (beta x^b + xi) t^-c + eps", "SoViT: Alabdulmohsin et al. 2023, equation 3", ("x", "t"),
             ("alpha", "a", "beta", "b", "xi", "c", "eps"), frozenset({"alpha", "beta", "xi", "eps"}), _shape, _shape_shift, _shape_guess)

FORMS: dict[str, Form] = {
    form.name: form for form in (CHINCHILLA, CONSTRAINED, LOGS_PRODUCT, POWER2, M1, M2, M3, M4, SATURATING, BROKEN1, BROKEN2, SHAPE)}
