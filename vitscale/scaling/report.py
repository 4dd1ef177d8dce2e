"""`vitscale fit SWEEP_DIR`: the points of a sweep to laws, prediction, verdict, the plan for the next budget, figures and a page."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vitscale import terminal
from vitscale.errors import DataError, RecipeError
from vitscale.metrics import COLUMNS, text
from vitscale.metrics.system import EVALUATION_LOSS
from vitscale.plan.flops import training_flops_per_image
from vitscale.plan.params import count_params
from vitscale.recipe import Recipe, load_recipe
from vitscale.recipe.load import check_recipe
from vitscale.recipe.text import write_yaml
from vitscale.scaling.analyse import Analysis, FitRequest, analyse
from vitscale.scaling.approaches import lowest
from vitscale.scaling.collect import points_of, rows_of
from vitscale.scaling.command import write_analysis
from vitscale.scaling.files import read_json, write_csv, write_json, write_text
from vitscale.scaling.optimum import PLANNED, Best, best_for, budget_of, flops_per_sample, most_informative
from vitscale.scaling.prediction import FILE as PREDICTION
from vitscale.scaling.prediction import judge, predict
from vitscale.scaling.runner import manifest, outcome_of
from vitscale.scaling.say import number, show_fit, span
from vitscale.scaling.seeds import judges_of, say_seeds
from vitscale.scaling.shapes import family
from vitscale.scaling.sweep import Sweep

EACH = f"--by model --x d --loss {EVALUATION_LOSS.column}"  # a law for each architecture, which has one size and sees more or fewer images
BEYOND = 4.0  # the next budget, if none is given: so many times the largest


def _asked(sweep: Sweep, given: FitRequest | None = None) -> FitRequest:
    """Options of the command line, and where there are none those of the sweep."""
    given = given or FitRequest()
    return replace(given, forms=given.forms or sweep.fit.forms, delta=given.delta if given.delta is not None else sweep.fit.delta)


def fit_points(folder: Path, given: FitRequest | None = None) -> tuple[Analysis, list[dict[str, Any]], Sweep]:
    """The runs that are not held out, fitted.  Raises DataError."""
    rows = rows_of(folder)
    sweep = Sweep.model_validate(manifest(folder)["sweep"])
    if sweep.models is not None:
        raise DataError(
            f"{folder}: its runs are of several architectures, which follow no one law: `vitscale compare {folder}` holds them side by "
            f"side, and `vitscale fit {folder / 'runs.csv'} {EACH}` fits each by itself, from three budgets on")
    points = points_of(rows, folder, sweep.fit.metric, held_out=False)
    if sweep.transfer == "none" and any(len(values or ()) > 1 for values in (sweep.axes.lr, sweep.axes.batch)):
        points = _best_of_rates(points, rows)
    return analyse(points, _asked(sweep, given)), rows, sweep


def _best_of_rates(points: Any, rows: list[dict[str, Any]]) -> Any:
    """Of runs that differ in learning rate and batch those of the rate that is best in the mean over seeds: a law is of well-tuned runs."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[int]]] = {}
    by_name = {row["run"]: row for row in rows}
    for i, run in enumerate(points.run):
        row = by_name[run]
        rates = groups.setdefault(tuple(row[name] for name in ("n", "d", "u")), {})
        rates.setdefault((row["lr"], row["batch"]), []).append(i)
    kept = sorted(i for rates in groups.values() for i in min(rates.values(), key=lambda members: float(np.mean(points.y[members]))))
    out = [{"where": points.run[i], "reason": "another learning rate or batch did better, in the mean over seeds"}
           for i in range(len(points)) if i not in set(kept)]
    return replace(points.take(kept), excluded=(*points.excluded, *out))


def predict_now(folder: Path) -> dict[str, Any]:
    """Before the held-out runs begin: fit the others and write prediction.json, once for all.  -> its content"""
    if before := read_json(folder / PREDICTION):
        return before
    found, rows, _ = fit_points(folder)
    held_out = [row for row in rows if row["held_out"]]
    started = [row["run"] for row in held_out
               if outcome_of(folder / "runs" / row["run"]) or (folder / "runs" / row["run"] / "metrics.jsonl").exists()]
    return predict(found, held_out, folder, started)


def show_runs(folder: Path, console: Console) -> None:
    """Of a sweep over architectures: runs.csv, and the same for people."""
    rows = rows_of(folder)
    write_csv(folder / "runs.csv", rows)
    judges, shown = judges_of(rows), []
    for row in rows:
        told = [text(row[one.column], one.unit, 3 if one.unit == "ratio" else 4) for one in judges]
        if row["reason"] is not None:
            told = [row["reason"], *[""] * (len(judges) - 1)]
        shown.append([row["run"], f"{row['n']:,}", f"{row['d']:,}", f"{row['c']:.3g}", *told])
    console.print(terminal.table(["run", "parameters", "images", "FLOP", *(one.word for one in judges)], shown), highlight=False)
    terminal.say(console, *say_seeds(rows, manifest(folder)))
    terminal.say(console, f"\nwritten to {folder}: runs.csv; their speed and memory beside it: vitscale compare {folder}")


def fit_now(folder: Path, console: Console) -> None:
    """All that a finished sweep can say, with the sweep's own options."""
    fit_sweep(folder, FitRequest(), folder, None, 0.0, True, console)


def fit_sweep(
    folder: Path, given: FitRequest, out: Path, budget: str | None, serve: float, figures: bool, console: Console | None = None
) -> None:
    """runs.csv, fit.json, backtest.csv, plan.json, recommended.yaml, verdict.json, figures/, report.html.  Raises DataError."""
    console = console or terminal.console()
    asked_budget = budget_of(budget) if budget is not None else None
    found, rows, sweep = fit_points(folder, given)
    write_csv(out / "runs.csv", rows)
    write_analysis(found, out)
    verdict = judge(folder, rows, found.points.hash())
    console.print(show_fit(found.told), highlight=False)
    terminal.say(console, *say_seeds(rows, manifest(folder)))
    plan = plan_next(found, rows, folder, sweep, asked_budget, serve)
    write_json(out / "plan.json", plan)
    if "recipe" in plan:
        write_text(out / "recommended.yaml", plan.pop("recipe"))
    terminal.say(console, *say_plan(plan, out), *say_verdict(verdict))
    if figures:
        from vitscale.scaling.figures import draw_all
        from vitscale.scaling.page import write_page

        draw_all(found, out / "figures", plan=plan, verdict=verdict, held_out=_held_out(rows, folder, sweep))
        write_page(found, out / "report.html", plan=plan, verdict=verdict, title=sweep.name, held_out=_held_out(rows, folder, sweep))
    terminal.say(console, f"\nwritten to {out}: runs.csv, fit.json, plan.json" + (", figures/, report.html" if figures else ""))


def _held_out(rows: list[dict[str, Any]], folder: Path, sweep: Sweep) -> Any:
    points = points_of(rows, folder, sweep.fit.metric, held_out=True)
    return points if len(points) else None


def plan_next(
    found: Analysis, rows: list[dict[str, Any]], folder: Path, sweep: Sweep, budget: tuple[float, str] | None, serve: float
) -> dict[str, Any]:
    """plan.json: the optimum of a budget, the run it recommends, and the next most informative one; or why there is none."""
    largest = max(row["c"] for row in rows)
    amount, note = budget or (BEYOND * largest, f"{BEYOND:g} times the sweep's largest run; give --budget")
    told: dict[str, Any] = {"budget_flop": amount, "budget": note, "serve_images": serve, "level": 0.95}
    told["rates"] = {key: best_rate(rows, key, sweep.fit.metric) for key in ("lr", "batch") if len({row[key] for row in rows}) > 1}
    scores = found.tested.scores if found.tested else {}
    usable = sorted((name for name in found.fits if name in PLANNED), key=lambda name: scores.get(name, np.inf))
    if not usable:
        return told | {"reason": f"no fitted law has an optimal size; {', '.join(PLANNED)} would"}
    law = found.fits[usable[0]]
    if usable[0] not in found.draws:
        from vitscale.scaling.intervals import bootstrap

        found.draws[usable[0]] = bootstrap(law)
    draws, per_sample = found.draws[usable[0]], flops_per_sample(found.points)
    unique = max(row["u"] for row in rows)
    best = best_for(law, draws, per_sample, amount, serve, unique)
    levels = sorted({float(row["budget"] or row["c"]) for row in rows})
    told |= {"law": usable[0], "n": best.n, "d": best.d, "predicted": best.y, "epochs": best.d[0] / unique, "metric": law.points.metric,
             "of": law.points.fitted, "frontier": [{"c": one.c, "n": one.n, "d": one.d, "predicted": one.y} for one in
                          (best_for(law, draws, per_sample, level, 0.0, unique) for level in sorted({*levels, amount}))]}
    if best.at_edge:
        return told | {"reason": "the law has no optimum among the sizes searched: its loss falls with size, or with samples, to the end"}
    known = {(row["n"], row["d"]) for row in rows}
    sizes = sorted({(row["n"], row["width"], row["depth"]) for row in rows})
    candidates = [{"n": float(n), "d": float(level / per_sample(np.array([n]))[0]), "u": float(unique), "width": width, "depth": depth}
                  for n, width, depth in sizes for level in np.geomspace(levels[0], levels[-1], 7)]
    candidates = [one for one in candidates if (one["n"], one["d"]) not in known and one["d"] >= 1]
    told["next_most_informative"] = most_informative(law, draws, per_sample, best, candidates)[:5]
    recipe, chosen = recommend(folder, rows, sweep, best, amount, serve, told["rates"])
    return told | {"recommended": chosen, "recipe": recipe}


def recommend(
    folder: Path, rows: list[dict[str, Any]], sweep: Sweep, best: Best, budget: float, serve: float, rates: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """A recipe for the shape of the sweep's rule whose parameters come nearest to the optimum, that spends the budget."""
    largest = max(rows, key=lambda row: row["c"])
    base = load_recipe(folder / "recipes" / f"{largest['run']}.yaml")
    sizes = sweep.sizes
    assert sizes is not None  # a sweep of architectures has no law
    values = base.model_dump(mode="json")

    models: list[Recipe] = []
    for shape in family(sizes):
        try:
            models.append(check_recipe(values | {"model": values["model"] | asdict(shape)}, "the recommended recipe"))
        except RecipeError:
            continue
    recipe = min(models, key=lambda one: abs(np.log(count_params(one.model, one.objective) / best.n[0])))
    per_image = training_flops_per_image(recipe.model, recipe.objective, recipe.data.views)
    told = recipe.model_dump(mode="json")
    for key, place in (("lr", ("optim", "lr")), ("batch", ("global_batch",))):
        law = rates.get(key, {}).get("law")
        if law:
            value = law["k"] * best.n[0] ** law["a"] * best.d[0] ** law["b"]
            if key == "batch":
                told[place[0]] = max(8, 8 * round(value / 8))
            else:
                told["optim"] = told["optim"] | {"lr": float(f"{value:.3g}")}
    batch = told["global_batch"]
    images = max(1, round((budget / per_image - serve / 3) / batch)) * batch
    if told["optim"]["cooldown"] is not None and sweep.cooldown:
        told["optim"] = told["optim"] | {"cooldown": f"{max(1, round(sweep.cooldown * images / batch)) * batch} images"}
    told |= {"name": f"{sweep.name}-next", "duration": f"{images} images", "runs_dir": "runs"}
    if told["data"]["num_samples"] is None:  # of a run with fewer shards
        whole = next((row for row in rows if row["u"] == max(one["u"] for one in rows)), largest)
        told["data"] = load_recipe(folder / "recipes" / f"{whole['run']}.yaml").model_dump(mode="json")["data"]
    final = check_recipe(told, "the recommended recipe")
    facts = {"n": count_params(final.model, final.objective), "d": images, "c": float(images * per_image), "width": told["model"]["width"],
             "depth": told["model"]["depth"], "heads": told["model"]["heads"], "mlp": told["model"]["mlp"], "lr": final.optim.lr,
             "batch": batch}
    header = (f"# The run that the sweep {sweep.name} recommends for {budget:.4g} FLOP: by its law {number(best.n[0])} parameters\n"
              f"# ({number(best.n[1])} to {number(best.n[2])}), {number(best.d[0])} images, a predicted {number(best.y[0])} "
              f"({number(best.y[1])} to {number(best.y[2])}).\n")
    return header + write_yaml(final.model_dump(mode="json")), facts


def best_rate(rows: list[dict[str, Any]], key: str, metric: str) -> dict[str, Any]:
    """The best learning rate or batch of each (n, d), from a parabola, and how it goes with them: k N^a D^b (Bi et al. 2024)."""
    usable = [row for row in rows if row["reason"] is None and not row["held_out"]]
    other = "batch" if key == "lr" else "lr"
    groups: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for row in usable:
        groups.setdefault((row["n"], row["d"], row[other]), []).append(row)
    optima, left_out = [], []
    for (n, d, at), members in sorted(groups.items()):
        y = np.array([1 - row[metric] if COLUMNS[metric].better == "higher" else row[metric] for row in members])
        found = lowest(np.array([row[key] for row in members], dtype=float), y)
        if isinstance(found, str):
            left_out.append({"n": n, "d": d, other: at, "reason": found})
        else:
            optima.append({"n": n, "d": d, other: at, "best": found[0]})
    told: dict[str, Any] = {"optima": optima, "left_out": left_out}
    varied = [role for role in "nd" if len({one[role] for one in optima}) > 1]
    if len(optima) < len(varied) + 1 or not varied:
        return told | {"reason": "too few optima for a law"}
    columns = np.stack([np.ones(len(optima)), *(np.log([one[role] for one in optima]) for role in varied)], axis=1)
    if np.linalg.matrix_rank(columns) < columns.shape[1]:
        columns, varied = columns[:, :2], varied[:1]
    found_k = np.linalg.lstsq(columns, np.log([one["best"] for one in optima]), rcond=None)[0]
    powers = dict(zip(varied, found_k[1:].tolist(), strict=True))
    return told | {"law": {"k": float(np.exp(found_k[0])), "a": powers.get("n", 0.0), "b": powers.get("d", 0.0)}}


def say_plan(plan: Mapping[str, Any], out: Path) -> list[str]:
    """Lines for people."""
    lines = ["", f"next budget: {plan['budget_flop']:.3g} FLOP ({plan['budget']})"]
    if "n" in plan:
        lines.append(f"  optimum by {plan['law']}: {span(plan['n'])} parameters, {span(plan['d'])} images = {plan['epochs']:.3g} epochs, "
                     f"predicted {plan['of']} {span(plan['predicted'])}")
    if "reason" in plan:
        lines.append(f"  no recommendation: {plan['reason']}")
    if "recommended" in plan:
        one = plan["recommended"]
        lines.append(
            f"  train: width {one['width']}, depth {one['depth']}, {one['n']:,} parameters, {one['d']:,} images, lr {one['lr']:g}, batch "
            f"{one['batch']}: vitscale train {out / 'recommended.yaml'}")
    for key, of in plan.get("rates", {}).items():
        if "law" in of:
            lines.append(
                f"  best {key}: {number(of['law']['k'])} N^{of['law']['a']:.3f} D^{of['law']['b']:.3f} from {len(of['optima'])} optima")
        lines += [f"  best {key}: {one['n']:,} parameters: {one['reason']}" for one in of["left_out"][:3]]
    if plan.get("next_most_informative"):
        one = plan["next_most_informative"][0]
        lines.append(
            f"  most informative per FLOP: width {one['width']}, depth {one['depth']}, {one['d']:,.0f} images ({one['c']:.3g} FLOP): the "
            f"prediction's standard error goes from {one['deviation_now']:.2%} to {one['deviation_after']:.2%}")
    return lines


def say_verdict(verdict: Mapping[str, Any] | None) -> list[str]:
    """Lines for people."""
    if verdict is None:
        return []
    lines = ["", f"verdict on {verdict['law']}, predicted {verdict['prediction_time']}"
             + ("" if verdict["predicted_before_start"] else "; some of the runs had begun by then")
             + ("" if verdict["data_unchanged"] else "; the fitted points have changed since")]
    for one in verdict["runs"]:
        lines.append(
            f"  {one['run']}: predicted {one['predicted']:.4f} ({one['low']:.4f} to {one['high']:.4f}), came to {one['observed']:.4f}: "
            + ("inside" if one["inside"] else "OUTSIDE"))
    error = verdict["rms_log_error"]
    lines.append(f"  {verdict['inside']} of {verdict['of']} inside the 95 % interval"
                 + (f"; root mean square log error {error:.2%}" if error is not None else ""))
    return lines
