"""How often 95 % intervals of scaling laws hold what is true, over noisy simulations; and how exactly laws are recovered without noise.

python benchmarks/scaling.py [--simulations 200]
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy
from measure import HERE, write_row

sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "scaling")]

from truths import CHINCHILLA, TRUTHS, points_of  # noqa: E402

from vitscale.scaling.fit import fit  # noqa: E402
from vitscale.scaling.forms import FORMS  # noqa: E402
from vitscale.scaling.intervals import bootstrap, log_prediction, outer_of, profile  # noqa: E402

DRAWS = 400  # as `vitscale fit` has it


def design(seed: int) -> dict[str, np.ndarray]:
    """Seven IsoFLOP profiles of nine sizes, as Hoffmann et al. 2022 have it."""
    rows = [
        (0.09 * c**0.5 * ratio, c / (6 * 0.09 * c**0.5 * ratio)) for c in np.geomspace(6e18, 3e21, 7) for ratio in np.geomspace(0.2, 5, 9)
    ]
    n, d = (np.array(column) for column in zip(*rows, strict=True))
    return {"n": n, "d": d}


def coverage(
    name: str,
    values: Mapping[str, float],
    x: Mapping[str, np.ndarray],
    noise: float,
    simulations: int,
    parameters: tuple[str, ...],
    beyond: Mapping[str, float],
) -> dict[str, list[int]]:
    """{what: [1 where the interval held the truth, else 0]} for both intervals of some parameters and of a prediction beyond the points."""
    form = FORMS[name]
    truth = points_of(name, values, {role: np.array([value]) for role, value in beyond.items()}).y[0]
    found: dict[str, list[int]] = {}
    for seed in range(simulations):
        law = fit(form, points_of(name, values, x, noise, seed + 1000), starts=12, delta=1.345 * noise)
        draws = bootstrap(law, DRAWS)
        quantities = {key: (outer_of(law, key), values[key]) for key in parameters}
        quantities["prediction"] = (log_prediction(law, beyond), float(np.log(truth)))
        for key, (of, true) in quantities.items():
            low, high = draws.interval(of)
            found.setdefault(f"bootstrap, {key}", []).append(int(low <= true <= high))
            around = float(np.real(of(law.theta[None]))[0])
            told = profile(law, draws, of, around, 2 * draws.deviation(of))
            found.setdefault(f"profile, {key}", []).append(
                int((told.low is None or told.low <= true) and (told.high is None or true <= told.high))
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args()
    worst = max(
        max(abs(fit(FORMS[name], points_of(name, values, x)).params[key] / values[key] - 1) for key in values) for name, values, x in TRUTHS
    )
    figures = [
        {
            "name": f"worst parameter of {len(TRUTHS)} forms without noise, relative error",
            "value": worst,
            "low": worst,
            "high": worst,
            "unit": "",
            "goal": "<= 1e-06",
            "met": worst <= 1e-6,
        }
    ]
    cases = [
        ("chinchilla3", CHINCHILLA, design(0), 0.005, ("alpha", "beta"), {"n": 3e10, "d": 6e11}),
        ("m2", {"beta": 50, "c": 0.25, "e_inf": 0.3}, {"x": np.geomspace(1e3, 1e10, 40)}, 0.03, ("c", "e_inf"), {"x": 1e12}),
    ]
    for name, values, x, noise, parameters, beyond in cases:
        for what, held in coverage(name, values, x, noise, given.simulations, parameters, beyond).items():
            share = 100 * float(np.mean(held))
            error = 100 * float(np.sqrt(0.95 * 0.05 / len(held)))
            figures.append(
                {
                    "name": f"{name}: {what}",
                    "value": share,
                    "low": share - error,
                    "high": min(share + error, 100.0),
                    "unit": "%",
                    "goal": "90 to 98",
                    "met": 90 <= share <= 98,
                }
            )
            print(f"{name}: {what}: {share:.1f} %", flush=True)
    write_row(
        given.rows,
        "scaling-coverage",
        f"How often 95 % intervals of a law hold the truth, {given.simulations} noisy simulations",
        figures,
        command=f"python benchmarks/scaling.py --simulations {given.simulations}",
        rounds=given.simulations,
        versions={"python": sys.version.split()[0], "numpy": np.__version__, "scipy": scipy.__version__},
    )


if __name__ == "__main__":
    main()
