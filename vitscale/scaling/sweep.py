"""A sweep recipe: which runs there are to be.  YAML to a frozen section; recipes/sweeps/*.yaml are examples."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vitscale.errors import RecipeError
from vitscale.metrics import COLUMNS
from vitscale.metrics.system import EVALUATION_LOSS
from vitscale.recipe.fields import Count, CountOrZero, Judge, Positive, Section
from vitscale.recipe.load import RECIPES, check_section, read_values


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Counts = Annotated[tuple[Count, ...], BeforeValidator(_tuple), Field(min_length=1)]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,30}$")]
Positives = Annotated[tuple[Positive, ...], BeforeValidator(_tuple), Field(min_length=1)]


class Explicit(Section):
    """A shape by its numbers."""

    width: Count
    depth: Count
    heads: Count
    mlp: Count


class Sizes(Section):
    """How models of different size are shaped.  Give `widths` with aspect, `scales` with sovit, `sizes` with list."""

    rule: Literal["aspect", "sovit", "list"] = "aspect"
    widths: Counts | None = None  # aspect: each a multiple of head_width
    width_per_layer: Positive = 64.0  # aspect: depth is width over this (Kaplan et al. 2020, section 3.1: the ratio matters little)
    scales: Positives | None = None  # sovit: compute of the training over that of SoViT-400m
    head_width: Count = 64  # heads are width over this
    mlp_ratio: Positive = 4.0  # aspect: hidden width of a block's MLP over its width
    sizes: Annotated[tuple[str | Explicit, ...], BeforeValidator(_tuple), Field(min_length=1)] | None = None  # list: names or numbers


class SweepAxes(Section):
    """What varies besides the size; what is not given stays as the base recipe has it."""

    samples: Counts | None = None  # images seen; of a run with a budget they follow from it
    unique_shards: Counts | None = None  # of data.train, the first ones: fewer unique samples, seen more often
    patch: Counts | None = None
    image: Counts | None = None
    lr: Positives | None = None
    batch: Counts | None = None


class Fitting(Section):
    metric: Judge = EVALUATION_LOSS.column  # one of the numbers that runs are ranked by
    forms: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()  # none: those the runs allow, chosen by backtest
    delta: Positive | None = None  # of Huber's function


class Sweep(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$")]
    base: str  # a run recipe: a file beside this one or from here, or a shipped one
    set: dict[str, Any] = Field(default_factory=dict)  # dotted keys of the base recipe that all runs have otherwise
    mode: Literal["grid", "isoflop", "star", "ladder"] = "isoflop"
    sizes: Sizes | None = None  # models of one family, larger and smaller
    # or architectures side by side: model sections by name, which take images, channels and classes from the base
    models: Annotated[dict[ModelName, dict[str, Any]], Field(min_length=2)] | None = None
    axes: SweepAxes = SweepAxes()
    budgets: Positives | None = None  # FLOPs of a training; isoflop: each with every size, ladder: one with each size
    hold_out: CountOrZero = 0  # the largest so many budgets (or samples x size) are predicted first and run last
    seeds: Annotated[tuple[CountOrZero, ...], BeforeValidator(_tuple), Field(min_length=1)] = (0,)
    epochs: Annotated[tuple[Positive, Positive], BeforeValidator(_tuple)] = (0.5, 300.0)  # isoflop: runs outside are pruned
    transfer: Literal["none", "mup"] = "none"
    mup_base_width: Count | None = None  # of mup; null: the smallest width of the sweep
    cooldown: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of a run; then runs of one model share one trunk (WSD)
    retries: CountOrZero = 2
    fit: Fitting = Fitting()


def find_sweep(name: str) -> Path:
    """A file as given, or the name of a shipped sweep.  Raises RecipeError."""
    path = Path(name)
    shipped = RECIPES / "sweeps" / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    if shipped.is_file() and path.parent in (Path(), Path("sweeps"), Path("recipes/sweeps")):
        return shipped
    known = ", ".join(sorted(one.stem for one in (RECIPES / "sweeps").glob("*.yaml")))
    raise RecipeError(f"{name}: no such sweep recipe; those that come along: {known}")


def load_sweep(name: str) -> tuple[Sweep, Path]:
    """Read and check a sweep recipe, every mistake at once.  Raises RecipeError."""
    path = find_sweep(name)
    return check_section(Sweep, read_values(path, "name: ..., base: ..., sizes: ..."), str(path), (), _contradictions), path


def _contradictions(sweep: Sweep) -> list[tuple[str, str]]:
    if sweep.models is not None:
        return _of_models(sweep)
    if sweep.sizes is None:
        return [("sizes", "is required, or models")]
    sizes, found = sweep.sizes, []
    wanted = {"aspect": "widths", "sovit": "scales", "list": "sizes"}[sizes.rule]
    if getattr(sizes, wanted) is None:
        found.append((f"sizes.{wanted}", f"is required by rule {sizes.rule}"))
    for width in sizes.widths or ():
        if width % sizes.head_width:
            found.append(("sizes.widths", f"{width} is no multiple of head_width {sizes.head_width}"))
    if sweep.mode in ("isoflop", "ladder") and sweep.budgets is None and not (sweep.mode == "ladder" and sweep.axes.samples):
        found.append(("budgets", f"is required by mode {sweep.mode}"))
    if sweep.mode in ("grid", "star") and sweep.budgets is not None:
        found.append(("budgets", f"mode {sweep.mode} has none: give axes.samples"))
    if sweep.mode == "isoflop" and sweep.axes.samples is not None:
        found.append(("axes.samples", "follow from the budgets in mode isoflop"))
    if sweep.mode == "star" and not any(getattr(sweep.axes, key) for key in SweepAxes.model_fields) and len(_listed(sizes)) < 2:
        found.append(("axes", "a star wants an axis"))
    if sweep.epochs[0] >= sweep.epochs[1]:
        found.append(("epochs", "wants a least and a most"))
    if sweep.mup_base_width is not None and sweep.transfer != "mup":
        found.append(("mup_base_width", "is of transfer: mup"))
    if (judge := COLUMNS[sweep.fit.metric]).better == "higher" and judge.unit != "ratio":
        found.append(("fit.metric", f"{judge.title} rises without a bound that a law could come to; take one that falls, or is a share"))
    if sweep.mode == "ladder":
        steps = sweep.axes.samples or sweep.budgets or ()
        if len(steps) != len(_listed(sizes)):
            found.append(("budgets", f"a ladder wants one for each of the {len(_listed(sizes))} sizes, got {len(steps)}"))
    return found


def _of_models(sweep: Sweep) -> list[tuple[str, str]]:
    """Mistakes of a sweep over architectures: there is no law from one to the next."""
    found = []
    if sweep.sizes is not None:
        found.append(("sizes", "are of one family; models says which models there are: give one of both"))
    if sweep.mode not in ("grid", "isoflop"):
        found.append(("mode", f"wants grid or isoflop with models, got {sweep.mode}"))
    if (sweep.mode == "isoflop") != (sweep.budgets is not None):
        found.append(("budgets", f"{'are required by' if sweep.budgets is None else 'do not go with'} mode {sweep.mode}"))
    if sweep.mode == "isoflop" and sweep.axes.samples is not None:
        found.append(("axes.samples", "follow from the budgets in mode isoflop"))
    if sweep.hold_out:
        found.append(("hold_out", "wants a law, which models of several architectures do not share"))
    if sweep.transfer == "mup":
        found.append(("transfer", "mup is of the widths of one family"))
    for key, value in (("mup_base_width", sweep.mup_base_width), ("fit.forms", sweep.fit.forms), ("fit.delta", sweep.fit.delta)):
        if value:
            found.append((key, "does nothing with models: neither a width nor a law is common to several architectures"))
    if sweep.epochs[0] >= sweep.epochs[1]:
        found.append(("epochs", "wants a least and a most"))
    return found


def _listed(sizes: Sizes) -> tuple[Any, ...]:
    return {"aspect": sizes.widths, "sovit": sizes.scales, "list": sizes.sizes}[sizes.rule] or ()
