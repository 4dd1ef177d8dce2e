"""What the law says of the largest runs before they run: prediction.json, written once, compared afterwards."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.errors import DataError
from vitscale.scaling.analyse import Analysis
from vitscale.scaling.files import read_json, write_json
from vitscale.scaling.fit import Fit
from vitscale.scaling.intervals import Draws, log_prediction

FILE = "prediction.json"
VERDICT = "verdict.json"


def interval_of_new(found: Fit, draws: Draws, x: Mapping[str, float]) -> tuple[float, float, float]:
    """(prediction, low, high) of y for one new run: the draws' spread and that of single runs about the law, together."""
    of = log_prediction(found, x)
    centre = float(np.real(of(found.theta[None]))[0])
    low, high = draws.interval(of)
    noise = 1.96 * found.scale
    ends = (centre, centre - float(np.hypot(centre - low, noise)), centre + float(np.hypot(high - centre, noise)))
    if found.form.link == "identity":
        bound = found.points.bound
        low, high = (ends[1], ends[2]) if bound is None else (bound - ends[2], bound - ends[1])
        return (centre if bound is None else bound - centre), low, high
    return float(np.exp(ends[0])), float(np.exp(ends[1])), float(np.exp(ends[2]))


def predict(found: Analysis, runs: Sequence[Mapping[str, Any]], folder: Path, started: list[str]) -> dict[str, Any]:
    """Write what the chosen law says of `runs` (rows with n, d, u, c).  -> the file's content

    `started`: which of them had begun, as the file says for itself.
    """
    path = folder / FILE
    assert found.chosen is not None
    law, draws = found.fits[found.chosen], found.draws[found.chosen]
    told = []
    for run in runs:
        value, low, high = interval_of_new(law, draws, {role: float(run[role]) for role in law.form.variables})
        told.append({"run": run["run"], "n": run["n"], "d": run["d"], "c": run["c"], "predicted": value, "low": low, "high": high})
    content = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "data_sha256": found.points.hash(),
               "points": len(found.points), "metric": found.points.metric,
               "of": "metric" if found.points.bound is None else f"{found.points.bound:g} - metric", "law": found.chosen,
               "formula": law.form.text, "parameters": law.params, "level": 0.95, "already_started": started, "runs": told}
    write_json(path, content)
    return read_json(path)


def judge(folder: Path, rows: Sequence[Mapping[str, Any]], data_hash: str) -> dict[str, Any] | None:
    """Compare prediction.json with what the runs came to; verdict.json; None while one of them is not done or nothing was predicted."""
    prediction = read_json(folder / FILE)
    if not prediction:
        return None
    try:
        by_name = {row["run"]: row for row in rows}
        predicted = prediction["runs"]
        told = []
        for one in predicted:
            row = by_name.get(one["run"])
            if row is None or row["reason"] is not None:
                return None
            metric = float(row[prediction["metric"]])
            y = metric if prediction["of"] == "metric" else float(prediction["of"].partition(" ")[0]) - metric
            told.append({"run": one["run"], "predicted": one["predicted"], "low": one["low"], "high": one["high"], "observed": y,
                         "log_error": float(np.log(one["predicted"] / y)) if y > 0 and one["predicted"] > 0 else None,
                         "inside": bool(one["low"] <= y <= one["high"])})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / FILE}: was not written by this program ({error!r}); remove it to have it made again") from None
    errors = [one["log_error"] for one in told if one["log_error"] is not None]
    verdict = {"prediction_time": prediction["time"], "law": prediction["law"], "data_unchanged": prediction["data_sha256"] == data_hash,
               "predicted_before_start": not prediction["already_started"], "inside": sum(one["inside"] for one in told), "of": len(told),
               "rms_log_error": float(np.sqrt(np.mean(np.square(errors)))) if errors else None, "runs": told}
    write_json(folder / VERDICT, verdict)
    return verdict
