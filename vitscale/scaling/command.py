"""`vitscale fit`: a CSV, or the folder of a sweep, to laws on disk and on the terminal."""

import functools
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitscale import terminal
from vitscale.counts import plural
from vitscale.errors import DataError
from vitscale.processes import usable_cores
from vitscale.scaling.analyse import Analysis, FitRequest, analyse, check_forms
from vitscale.scaling.files import write_csv, write_json
from vitscale.scaling.optimum import PLANNED, best_for, budget_of, flops_per_sample
from vitscale.scaling.points import Columns, Points, read_csv, read_number
from vitscale.scaling.say import number, show_fit, span


def forms_of(text: str | None) -> tuple[str, ...]:
    """`m1,m2` -> ("m1", "m2")."""
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    check_forms(names)
    return names


def fixed_of(pairs: Sequence[str]) -> dict[str, float]:
    """`e_0=0.9` -> {"e_0": 0.9}.  Raises DataError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        found[name.strip()] = read_number(value)
        if not equals or not math.isfinite(found[name.strip()]):
            raise DataError(f"--fix wants NAME=NUMBER, got {pair!r}")
    return found


def columns_of(roles: Mapping[str, str | None], loss: str | None, accuracy: str | None, bound: float, run: str | None, where: Sequence[str],
               flops_per: float | None) -> Columns:
    """The options that name columns.  Raises DataError when they are too few, or contradict each other."""
    given = {role: column for role, column in roles.items() if column is not None}
    if (loss is None) == (accuracy is None):
        raise DataError("give the metric's column by one of --loss (falls as models get better) and --accuracy (rises)")
    if "x" not in given and not {"n", "d"} <= set(given):
        raise DataError("give the variables' columns: --n and --d (size and samples), or --x for a law in one variable")
    metric = loss if loss is not None else str(accuracy)
    return Columns(given, metric, accuracy is not None, bound, run, where, flops_per)


def fit_csv(path: Path, columns: Columns, asked: FitRequest, out: Path, by: str | None = None, split_by: str | None = None,
            figures: bool = True, budget: str | None = None, serve: float = 0.0) -> None:
    """Fit the points of a CSV; `by`: each value of that column (or of several, with commas) by itself, without intervals."""
    names = [name.strip() for name in (by or "").split(",") if name.strip()]
    points = read_csv(path, replace(columns, keep=(*names, *([split_by] if split_by else []))))
    if not names:
        _one(points, asked, out, split_by, figures, budget_of(budget) if budget is not None else None, serve)
        return
    members: dict[tuple[str, ...], list[int]] = {}
    for i, values in enumerate(zip(*(points.groups[name] for name in names), strict=True)):
        members.setdefault(values, []).append(i)
    groups = {", ".join(values): points.take(members[values]) for values in sorted(members)}
    told: list[dict[str, Any]] = []
    errors: dict[str, list[float]] = {}
    console = terminal.console()
    at_once = min(usable_cores(), len(groups))
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        fits = pool.map(functools.partial(_group, asked=replace(asked, intervals=False), split_by=split_by), groups.values())
        for (label, of), found in zip(groups.items(), fits, strict=True):
            if isinstance(found, str):
                told.append({"group": label, "points": len(of), "chosen": "", "note": found})
            else:
                held = found.get("hold_out", {}).get("rms_log_error", {})
                chosen = found["chosen"]
                for name, error_of in (held | ({"chosen": held[chosen]} if held and chosen else {})).items():
                    errors.setdefault(name, []).append(error_of)
                told.append({"group": label, "points": len(of), "chosen": chosen, **{f"hold_out_{name}": held[name] for name in held}})
                write_json(out / "groups" / f"{len(told):03d}.json", {"group": label} | found)
            terminal.say(console, f"{label}: {told[-1]['chosen'] or told[-1]['note']}")
    write_csv(out / "groups.csv", told)
    whole = {name: one for name, one in errors.items() if len(one) == max(len(other) for other in errors.values())}
    summary = {name: sum(one) / len(one) for name, one in sorted(whole.items())}
    write_json(out / "groups.json",
               {"groups": len(told), "fitted": sum(bool(one["chosen"]) for one in told), "mean_hold_out_rms_log_error": summary})
    for name, error_of in summary.items():
        terminal.say(console, f"mean hold-out error of {name}: {error_of:.3%} over {plural(len(errors[name]), 'group')}")
    terminal.say(console, f"written to {out}")


def _group(points: Points, asked: FitRequest, split_by: str | None) -> dict[str, Any] | str:
    """What fit.json says of one group, or why there is nothing to say."""
    try:
        return _analysed(points, asked, split_by).told
    except DataError as error:
        return str(error)


def _analysed(points: Points, asked: FitRequest, split_by: str | None) -> Analysis:
    if split_by is None:
        return analyse(points, asked)
    train = [value.strip().lower() in ("1", "1.0", "true", "train", "yes") for value in points.groups[split_by]]
    if all(train) or not any(train):
        raise DataError(f"{points.source}: column {split_by} marks {'all' if all(train) else 'no'} points for training (1, true, train)")
    return analyse(
        points.take([i for i, one in enumerate(train) if one]), asked, points.take([i for i, one in enumerate(train) if not one]))


def _one(
    points: Points, asked: FitRequest, out: Path, split_by: str | None, figures: bool, budget: tuple[float, str] | None, serve: float
) -> None:
    found = _analysed(points, asked, split_by)
    write_analysis(found, out)
    console = terminal.console()
    console.print(show_fit(found.told), highlight=False)
    plan = optimum_of(found, budget, serve) if budget is not None else None
    if plan is not None:
        write_json(out / "plan.json", plan)
        terminal.say(console, *say_optimum(plan))
    if figures and found.fits:
        from vitscale.scaling.figures import draw_all
        from vitscale.scaling.page import write_page

        draw_all(found, out / "figures", plan=plan)
        write_page(found, out / "report.html", title=Path(points.source).stem, plan=plan)
    terminal.say(console, f"\nwritten to {out}")


def optimum_of(found: Analysis, budget: tuple[float, str], serve: float) -> dict[str, Any]:
    """The best size and number of samples for a budget, by the law that has them.  Raises DataError when none does."""
    name = next((name for name in (found.chosen, "chinchilla3", "data_constrained") if name in found.draws and name in PLANNED), None)
    if name is None or "c" not in found.points.x:
        raise DataError(f"--budget wants a fit of {' or '.join(PLANNED)}, and FLOPs: --c COLUMN, or --flops-per 6")
    best = best_for(found.fits[name], found.draws[name], flops_per_sample(found.points), budget[0], serve)
    told = {"budget_flop": budget[0], "budget": budget[1], "serve_images": serve, "level": 0.95, "law": name, "metric": found.points.metric,
            "of": found.points.fitted, "n": best.n, "d": best.d, "predicted": best.y}
    return told | ({"reason": "the law has no optimum among the sizes searched: it falls with size, or with samples, to the end"}
                   if best.at_edge else {})


def say_optimum(plan: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    lines = ["", f"for {plan['budget_flop']:.3g} FLOP ({plan['budget']}), by {plan['law']}:"]
    lines += [f"  {name} {span(plan[key])}" for name, key in (("N*", "n"), ("D*", "d"), (f"predicted {plan['of']}", "predicted"))]
    return lines + ([f"  ! {plan['reason']}"] if "reason" in plan else [])


def write_analysis(found: Analysis, out: Path) -> None:
    """fit.json, points.csv, backtest.csv, profiles.csv."""
    write_json(out / "fit.json", found.told)
    write_csv(out / "points.csv", _rows(found))
    if found.tested is not None:
        write_csv(out / "backtest.csv", found.tested.rows)
    profiles = [{"form": form, "parameter": name, "value": value, "statistic": height} for form, of in found.profiles.items()
                for name, one in of.items() for value, height in zip(one.values, one.statistic, strict=True)]
    if profiles:
        write_csv(out / "profiles.csv", profiles)


def _rows(found: Analysis) -> list[dict[str, Any]]:
    points = found.points
    rows: list[dict[str, Any]] = []
    for i in range(len(points)):
        row: dict[str, Any] = {"run": points.run[i], **{role: values[i] for role, values in points.x.items()},
                               points.metric: points.told(points.y)[i]}
        if found.chosen:
            row["residual"] = found.fits[found.chosen].residuals[i]
        rows.append(row)
    return rows


def summary(told: Mapping[str, Any]) -> str:
    """One line of the chosen law."""
    one = told["fits"][told["chosen"]]
    return f"{told['chosen']}: " + ", ".join(f"{key} {number(value['value'])}" for key, value in one["parameters"].items())
