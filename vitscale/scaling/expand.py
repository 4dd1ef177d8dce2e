"""A sweep to ordinary run recipes: who runs what, for how many FLOPs, and what was pruned and why."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitscale.errors import RecipeError
from vitscale.plan.flops import training_flops_per_image
from vitscale.plan.params import count_params
from vitscale.recipe import Recipe
from vitscale.recipe.check_objective import judges_of
from vitscale.recipe.load import check_recipe, find_recipe, read_values
from vitscale.recipe.text import write_yaml
from vitscale.recipe.upgrade import renamed_to, upgrade
from vitscale.scaling.shapes import SweepMember, members, shapes
from vitscale.scaling.sweep import Sweep
from vitscale.shapes.vit import Shape

_SHARED = ("image", "channels", "classes")  # what a sweep's models take from the base
_AXES = ("unique_shards", "patch", "image", "lr", "batch")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Run:
    """One training of a sweep, and its place among the others."""

    name: str
    recipe: Recipe
    n: int  # parameters
    d: int  # images seen
    u: int  # unique images that there are
    c: float  # FLOPs
    model: str  # its name among the sweep's
    shape: Shape | None  # of a sweep over sizes
    seed: int
    lr: float
    batch: int
    budget: float | None
    level: float  # by which the largest are held out: the budget, else the FLOPs
    held_out: bool = False
    trunk: str | None = None  # the run whose checkpoint this one branches off (WSD)
    branch_step: int | None = None

    def facts(self) -> dict[str, Any]:
        """For sweep.json."""
        told = asdict(self)
        del told["recipe"]
        return told


@dataclass(frozen=True)
class SweepPlan:
    """All runs in the order of their FLOPs, and those that were not worth making."""

    sweep: Sweep
    runs: tuple[Run, ...]
    pruned: tuple[dict[str, str], ...]

    @property
    def first(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if not run.held_out)

    @property
    def held_out(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.held_out)


def expand(sweep: Sweep, source: Path, folder: Path) -> SweepPlan:
    """The runs of a sweep; run folders are `folder`/runs/NAME.  Raises RecipeError for whatever one of the recipes has wrong."""
    beside = source.parent / sweep.base
    base_path = beside if beside.is_file() else find_recipe(sweep.base)
    values, _ = upgrade(read_values(base_path, "name: ..., model: ..."), str(base_path))
    for dotted, value in sweep.set.items():
        _put(values, renamed_to(dotted) or dotted, value)
    family = values.get("model", {}).get("family", "vit")
    if sweep.sizes is not None and family not in ("vit", "deit"):
        raise RecipeError(f"{source}: base: sweeps shape the families vit and deit, and {base_path} is of {family}")
    runs: dict[str, Run] = {}
    pruned: list[dict[str, str]] = []
    for member, budget, samples, axes in combinations(sweep):
        for seed in sweep.seeds:
            try:
                run = _run(sweep, values, source, folder, member, budget, samples, axes, seed)
                if run.name in runs:
                    raise _Pruned(run.name, "the same as another run")
                runs[run.name] = run
            except _Pruned as out:
                pruned.append({"run": out.args[0], "reason": out.args[1]})
    ordered = sorted(runs.values(), key=lambda run: (run.level, run.c, run.name))
    if not ordered:
        raise RecipeError(f"{source}: no run is left: {pruned[0]['run']}: {pruned[0]['reason']}" if pruned else f"{source}: has no runs")
    levels = sorted({_level(run) for run in ordered})
    if sweep.hold_out and sweep.hold_out >= len(levels):
        raise RecipeError(f"{source}: hold_out: {sweep.hold_out} of {len(levels)} budgets leaves nothing to fit")
    largest = set(levels[len(levels) - sweep.hold_out :]) if sweep.hold_out else set()
    ordered = [replace(run, held_out=_level(run) in largest) for run in ordered]
    if sweep.cooldown is not None:
        ordered = _branches(sweep, ordered)
    return SweepPlan(sweep, tuple(ordered), tuple(pruned))


class _Pruned(Exception):
    """A run, and why it is not made."""


def combinations(sweep: Sweep) -> Iterator[tuple[SweepMember, float | None, int | None, dict[str, Any]]]:
    """(model, budget, samples, values of the other axes) of every run, by the mode."""
    sizes = members(sweep)
    axes = {key: values for key in _AXES if (values := getattr(sweep.axes, key)) is not None}
    products = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    match sweep.mode:
        case "isoflop":
            yield from ((shape, budget, None, one) for budget in sweep.budgets or () for shape in sizes for one in products)
        case "ladder":
            steps: list[tuple[float | None, int | None]] = ([(None, samples) for samples in sweep.axes.samples] if sweep.axes.samples
                                                            else [(budget, None) for budget in sweep.budgets or ()])
            yield from ((shape, *step, one) for shape, step in zip(sizes, steps, strict=True) for one in products)
        case "grid":
            yield from ((shape, None, samples, one) for shape in sizes for samples in sweep.axes.samples or (None,) for one in products)
        case "star":  # all in the middle; then one away from it at a time
            samples = sweep.axes.samples or (None,)
            middle = {key: values[len(values) // 2] for key, values in axes.items()}
            centre_shape, centre_samples = sizes[len(sizes) // 2], samples[len(samples) // 2]
            yield centre_shape, None, centre_samples, middle
            yield from ((shape, None, centre_samples, middle) for shape in sizes if shape != centre_shape)
            yield from ((centre_shape, None, one, middle) for one in samples if one != centre_samples)
            for key, values in axes.items():
                yield from ((centre_shape, None, centre_samples, middle | {key: value}) for value in values if value != middle[key])


def _run(sweep: Sweep, values: dict[str, Any], source: Path, folder: Path, member: SweepMember, budget: float | None, samples: int | None,
         axes: dict[str, Any], seed: int) -> Run:
    mine = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    kept = mine["model"] if sweep.models is None else {key: mine["model"][key] for key in _SHARED if key in mine["model"]}
    mine["model"] = kept | dict(member.section)
    mine |= {"seed": seed, "runs_dir": str(folder / "runs"), "name": "run"}
    if "patch" in axes:
        mine["model"]["patch"] = axes["patch"]
    if "image" in axes:
        mine["model"]["image"] = axes["image"]
    if "lr" in axes:
        mine["optim"] = mine.get("optim", {}) | {"lr": axes["lr"]}
    if "batch" in axes:
        mine["global_batch"] = axes["batch"]
    if sweep.transfer == "mup" and sweep.sizes is not None:
        smallest = min(shapes(sweep.sizes), key=lambda one: one.width)
        mine["model"] |= {"mup_base_width": sweep.mup_base_width or smallest.width, "mup_base_head_width": smallest.width // smallest.heads}
    unique = _unique(mine, axes.get("unique_shards"), source)
    if sweep.cooldown is not None:
        mine["optim"] = mine.get("optim", {}) | {"schedule": "wsd", "cooldown": "1 steps"}  # its length is set below
    if budget is None and samples is not None:
        mine["duration"] = f"{samples} images"
    probe = check_recipe(mine, f"{source}: a run of {member.name}")
    if sweep.fit.metric not in (told := judges_of(probe)):
        raise RecipeError(f"{source}: fit.metric: its runs would not tell {sweep.fit.metric}: they tell {', '.join(sorted(told))}; "
                          "others by evaluate.features, where the objective compares views")
    if probe.data.val is None:
        raise RecipeError(f"{source}: fit.metric: its runs would not tell {sweep.fit.metric}, since they have nothing to be evaluated on; "
                          "give data.val")
    per_image = training_flops_per_image(probe.model, probe.objective, probe.data.views)
    batch = probe.global_batch
    if budget is not None:
        images = max(1, round(budget / per_image / batch)) * batch
    else:
        images = probe.duration.images(unique, batch, probe.data.repeats)
    mine["duration"] = f"{images} images"
    name = _name(member, images, axes, seed, sweep)
    mine["name"] = name
    reason = _why_not(sweep, probe, budget, images, images * per_image, unique)
    if reason is not None:
        raise _Pruned(name, reason)
    if sweep.cooldown is not None:
        mine["optim"] |= {"cooldown": f"{max(1, round(sweep.cooldown * images / batch)) * batch} images"}
    recipe = check_recipe(mine, f"{source}: run {name}")
    c = float(images * per_image)
    return Run(name, recipe, count_params(recipe.model, recipe.objective), images, unique, c, member.name, member.shape, seed,
               recipe.optim.lr, batch, budget, budget if budget is not None else c)


def _unique(values: dict[str, Any], shards: int | None, source: Path) -> int:
    """Unique images of the training set; cuts data.train to its first `shards`."""
    data = values["data"] = dict(values.get("data") or {})
    declared = data.get("num_samples")
    if declared is None:
        raise RecipeError(
            f"{source}: the base recipe declares no data.num_samples, without which nothing can be counted: put it under `set`")
    if shards is None:
        return int(declared)
    urls = data.get("train")
    listed = [one for url in ([urls] if isinstance(urls, str) else urls or []) for one in _expanded(url)]
    if shards > len(listed):
        raise RecipeError(
            f"{source}: axes.unique_shards: {shards} of the {len(listed)} shards that data.train names (globs are not looked up)")
    if shards < len(listed):
        data["train"] = listed[:shards]
        data["num_samples"] = None  # the shards say it; here their average is taken
    return round(int(declared) * shards / len(listed))


def _expanded(url: str) -> list[str]:
    match = _BRACES.search(url)
    if match is None:
        return [url]
    low, high = match.groups()
    return [
        one for i in range(int(low), int(high) + 1) for one in _expanded(url[: match.start()] + str(i).zfill(len(low)) + url[match.end() :])
    ]


def _name(member: SweepMember, images: int, axes: dict[str, Any], seed: int, sweep: Sweep) -> str:
    parts = [member.name, f"d{images}"]
    letters = {"unique_shards": "u", "patch": "p", "image": "i", "lr": "lr", "batch": "b"}
    parts += [f"{letters[key]}{value:g}" for key, value in axes.items() if len(getattr(sweep.axes, key)) > 1]
    if len(sweep.seeds) > 1:
        parts.append(f"s{seed}")
    return "-".join(parts)


def _level(run: Run) -> float:
    """What makes a run one of the largest: its budget, else its FLOPs within a tenth of a factor of two."""
    return run.budget if run.budget is not None else float(round(10 * math.log2(run.level)))


def _why_not(sweep: Sweep, recipe: Recipe, budget: float | None, images: int, flops: float, unique: int) -> str | None:
    """A run that could tell nothing, or would not be of its budget: pruned before it costs anything."""
    if budget is not None and flops > 1.5 * budget:
        return f"a single step of it takes {flops:.3g} FLOP, more than the budget"
    if sweep.mode == "isoflop" and not sweep.epochs[0] <= images / unique <= sweep.epochs[1]:
        return f"it would see the data {images / unique:.3g} times, outside of epochs {sweep.epochs[0]:g} to {sweep.epochs[1]:g}"
    warmup = recipe.optim.warmup.images(unique, recipe.global_batch)
    cooldown = round((sweep.cooldown or 0) * images)
    if budget is not None and warmup + cooldown > images:
        return f"warm-up and cooldown take {warmup + cooldown} images, more than its {images}"
    return None


def _branches(sweep: Sweep, runs: list[Run]) -> list[Run]:
    """Runs that differ in length alone go along one trunk: the longest; the shorter ones branch off it where their cooldown begins."""

    def alike(run: Run) -> str:
        told = run.recipe.model_dump(mode="json")
        for key in ("name", "duration"):
            del told[key]
        del told["optim"]["cooldown"]
        return write_yaml(told) + str(run.held_out)

    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(alike(run), []).append(run)
    found: dict[str, Run] = {}
    for group in groups.values():
        trunk = max(group, key=lambda run: run.d)
        steps = {run.name: _steps_at(run, run.d - _cooldown(run)) for run in group if run is not trunk}
        steps = {name: step for name, step in steps.items() if step > 0}
        every = math.gcd(*steps.values()) if steps else 0
        count = _steps_at(trunk, trunk.d) // every if every else 0
        if 0 < count <= 200:  # else a checkpoint every few steps would cost more than the branches save
            checkpoint = trunk.recipe.checkpoint.model_dump(mode="json") | {"every": f"{every} steps", "keep": count + 1}
            recipe = check_recipe(trunk.recipe.model_dump(mode="json") | {"checkpoint": checkpoint}, trunk.name)
            found[trunk.name] = replace(trunk, recipe=recipe)
            for run in group:
                if run.name in steps:
                    found[run.name] = replace(run, trunk=trunk.name, branch_step=steps[run.name])
    return [found.get(run.name, run) for run in runs]


def _steps_at(run: Run, images: int) -> int:
    """Whole steps within so many images; the last batch of an epoch is cut short."""
    epochs, rest = divmod(images, run.u)
    return epochs * -(-run.u // run.batch) + rest // run.batch


def _cooldown(run: Run) -> int:
    return run.recipe.optim.cooldown.images(run.u, run.batch) if run.recipe.optim.cooldown else 0


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    keys = dotted.split(".")
    for key in keys[:-1]:
        values[key] = dict(values.get(key) or {})
        values = values[key]
    values[keys[-1]] = value
