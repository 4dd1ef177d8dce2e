"""Runs that differ in nothing but the seed, as one: the mean with its spread, never the best of them."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitscale.counts import plural
from vitscale.metrics import JUDGES, Metric, text
from vitscale.metrics.metric import Unit
from vitscale.metrics.system import EVALUATION_LOSS

_OWN = ("name", "seed", "trunk", "branch_step")      # of a run, whatever it shares with others


@dataclass(frozen=True)
class Spread:
    """Of one number over runs.  `deviation` is the sample's standard deviation, None of a single run."""

    runs: int
    mean: float
    deviation: float | None
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Of those that are finite; None if none is."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1)) if len(known) > 1 else None
    return Spread(len(known), mean, deviation, min(known), max(known))


def setting_of(run: Mapping[str, Any]) -> str:
    """What a run of sweep.json has in common with those that differ in the seed alone."""
    return json.dumps({key: value for key, value in run.items() if key not in _OWN}, sort_keys=True, default=str)


def over_seeds(runs: Sequence[Mapping[str, Any]], measured: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One entry for each setting that several runs share: {"runs", "names", "n", "d", "lr", "batch", and each number's Spread as a dict}.

    `measured`: run -> its numbers, of the runs that are done.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(setting_of(run), []).append(run)
    found = []
    for members in groups.values():
        if len(members) < 2:
            continue
        done = [measured[str(run.get("name"))] for run in members if str(run.get("name")) in measured]
        entry: dict[str, Any] = {"runs": len(members), "names": [str(run.get("name")) for run in members]}
        entry |= {key: members[0].get(key) for key in ("model", "n", "d", "c", "budget", "lr", "batch", "held_out")}
        for judge in JUDGES:
            told = spread([numbers[judge.column] for numbers in done if judge.column in numbers])
            entry[judge.column] = asdict(told) if told is not None else None
        found.append(entry)
    return found


def words(told: Mapping[str, Any] | None, runs: int, unit: Unit = "number") -> str:
    """`0.5123 ± 0.0061, 0.5054 to 0.5170, of 3 seeds`."""
    if told is None:
        return f"none of {plural(runs, 'seed')} is done"

    some = plural(told["runs"], "seed") if told["runs"] == runs else f"{told['runs']} of {plural(runs, 'seed')}"
    if told["deviation"] is None:
        return f"{text(told['mean'], unit)}, of {some}"
    mean, deviation, low, high = (text(told[name], unit) for name in ("mean", "deviation", "low", "high"))
    return f"{mean} ± {deviation}, {low} to {high}, of {some}"


def judges_of(rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Those of JUDGES that some row of runs.csv has a number of, the loss first and in any case."""
    done = [row for row in rows if row["reason"] is None]
    return [judge for judge in reversed(JUDGES)
            if judge == EVALUATION_LOSS or any(not math.isnan(float(row[judge.column])) for row in done)]


def say_seeds(rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[str]:
    """Lines for people.  `rows`: of runs.csv; `told`: sweep.json.  Means over seeds, and how many of all runs are in which state."""
    measured = {str(row["run"]): {judge.column: float(row[judge.column]) for judge in JUDGES} for row in rows if row["reason"] is None}
    lines = [f"  {', '.join(one['names'])}: "
             + "; ".join(f"{judge.word} {words(one[judge.column], one['runs'], judge.unit)}" for judge in judges_of(rows))
             for one in over_seeds(told["runs"], measured)]
    states = Counter(str(row["state"]) for row in rows) + Counter({"refused": len(told.get("pruned", ()))})
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return [*(["", "mean ± standard deviation over seeds, from the least to the most:", *lines] if lines else []), "",
            f"runs of the sweep: {counts}"]
