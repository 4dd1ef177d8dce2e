"""Figures for a paper, PNG and SVG: IsoFLOP profiles, frontier, one-variable laws, residuals, profiles of the likelihood, hold-out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from vitscale.scaling.analyse import Analysis
from vitscale.scaling.approaches import budgets_of, lowest
from vitscale.scaling.backtest import order_of
from vitscale.scaling.optimum import best_for, flops_per_sample
from vitscale.scaling.points import Points
from vitscale.scaling.solve import Array

matplotlib.use("Agg")
INK, SOFT, ACCENT = "#222222", "#8a8a8a", "#c1272d"
STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
                         "legend.fontsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
                         "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4,
                         "ytick.minor.width": 0.4, "lines.linewidth": 1.1, "legend.frameon": False, "svg.hashsalt": "vitscale",
                         "svg.fonttype": "none", "figure.dpi": 100, "savefig.dpi": 200, "text.parse_math": True}
LINE_COLOURS = ("#3b6fb6", "#d98c21", "#4c9a5b", "#8d5fa8", "#b5543f", "#5f7f8c")


def draw_all(found: Analysis, folder: Path, plan: Mapping[str, Any] | None = None, verdict: Mapping[str, Any] | None = None,
             held_out: Points | None = None) -> list[str]:
    """Every figure that the analysis can fill; -> their names.  The same bytes for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = held_out if held_out is not None else found.held_out
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, figure in (("isoflop", isoflop_profiles(found, held_out)), ("frontier", frontier(found, plan)),
                             ("law", one_variable(found, held_out)), ("residuals", residuals(found)), ("profiles", profiles(found)),
                             ("hold_out", hold_out(verdict))):
            if figure is None:
                continue
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            drawn.append(name)
    return drawn


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns, **options)).ravel())


def sized(points: Points) -> bool:
    """Whether the points have a size, samples and compute."""
    return {"n", "d", "c"} <= set(points.x)


def plane_law(found: Analysis) -> str | None:
    """The law that is drawn over size and samples: the chosen one, else Chinchilla's."""
    names = [name for name in (found.chosen, "chinchilla3") if name in found.fits and {"n", "d"} <= set(found.fits[name].form.variables)]
    return names[0] if names else None


def level_place(found: Analysis, name: str, n: Array, budget: float) -> dict[str, Array]:
    """Places along one budget."""
    d = budget / flops_per_sample(found.points)(n)
    place = {"n": n, "d": d}
    if "u" in found.points.x:
        place["u"] = np.full(len(n), found.points.x["u"].max())
    return place


def isoflop_profiles(found: Analysis, held_out: Points | None) -> Figure | None:
    """The metric over the size, budget by budget: points, the law, and where each profile is lowest."""
    name = plane_law(found)
    if name is None or not sized(found.points):
        return None
    labels = budgets_of(found.points)
    levels = [level for level in sorted(set(labels)) if (labels == level).sum() >= 2]
    if not 2 <= len(levels) <= 20:
        return None
    figure, (axes,) = new_figure(3.6, 2.9)
    held = budgets_of(held_out) if held_out is not None and len(held_out) else None
    everything = levels + ([] if held is None else sorted(set(held)))
    colours = {level: colormaps["viridis"](0.9 * i / max(len(everything) - 1, 1)) for i, level in enumerate(everything)}
    span = np.concatenate([found.points.x["n"], held_out.x["n"]]) if held_out is not None and held is not None else found.points.x["n"]
    marks = []
    for level in everything:
        source, where = (found.points, labels == level) if level in levels else (held_out, held == level)
        assert source is not None
        mine = source.take(where)
        hollow = level not in levels
        axes.plot(mine.x["n"], mine.y, "o", markersize=3.4, color=colours[level], markerfacecolor="white" if hollow else colours[level],
                  markeredgewidth=0.9, zorder=3)
        n = np.geomspace(max(span.min() / 1.3, mine.x["n"].min() / 1.6), mine.x["n"].max() * 1.6, 100)
        axes.plot(
            n, found.fits[name].predict(level_place(found, name, n, level)), "--" if hollow else "-", color=colours[level], linewidth=1.0)
        best = lowest(mine.x["n"], mine.y)
        if not isinstance(best, str):
            marks.append((best[0], best[1], colours[level]))
        axes.annotate(f"{level:.2g}".replace("e+0", "e").replace("e+", "e"), (mine.x["n"].max(), mine.y[np.argmax(mine.x["n"])]),
                      xytext=(5, 0), textcoords="offset points", fontsize=6.5, color=colours[level], va="center")
    for x, y, colour in marks:
        axes.plot(x, y, marker="*", markersize=7.5, color=colour, markeredgecolor=INK, markeredgewidth=0.5, zorder=4)
    axes.set(xscale="log", yscale="log", xlabel="parameters N", ylabel=found.points.fitted)
    axes.margins(x=0.12)
    axes.set_title(f"lines: {name}; stars: lowest point of each profile\n" + ("hollow, dashed: held out; " if held is not None else "")
                   + "numbers: FLOPs of a training", loc="left", fontsize=6.5, color=SOFT)
    plain_ticks(axes)
    return figure


def plain_ticks(axes: Axes) -> None:
    """On a logarithmic axis of less than a decade and a half numbers as people write them."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high / low < 40:
        steps = [k * 10.0**e for e in range(-6, 7) for k in ((1, 2, 5) if high / low > 3 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))]
        ticks = [step for step in steps if low <= step <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())


def frontier(found: Analysis, plan: Mapping[str, Any] | None) -> Figure | None:
    """Optimal size and samples over compute, with a 95 % band, the profiles' own optima, and the next budget."""
    name = plane_law(found)
    if name is None or not sized(found.points) or name not in found.draws or name == "log_log":
        return None
    c = found.points.x["c"]
    top = max(c.max() * 4, (plan or {}).get("budget_flop", 0.0) * 1.5)
    levels = np.geomspace(c.min(), top, 25)
    per_sample = flops_per_sample(found.points)
    bests = [best_for(found.fits[name], found.draws[name], per_sample, float(level)) for level in levels]
    optima = []
    labels = budgets_of(found.points)
    for level in sorted(set(labels)):
        mine = found.points.take(labels == level)
        best = lowest(mine.x["n"], mine.y)
        if not isinstance(best, str):
            optima.append((level, best[0]))
    figure, panels = new_figure(6.6, 2.6, columns=3)
    for axes, key, label in zip(
        panels, ("n", "d", "y"), ("optimal parameters N*", "optimal samples D*", f"predicted {found.points.fitted}"), strict=True):
        values = np.array([getattr(best, key) for best in bests])
        axes.fill_between(levels, values[:, 1], values[:, 2], color=LINE_COLOURS[0], alpha=0.18, linewidth=0)
        axes.plot(levels, values[:, 0], color=LINE_COLOURS[0])
        axes.axvline(c.max(), color=SOFT, linewidth=0.6, linestyle=":")
        if key == "n" and optima:
            axes.plot(*zip(*optima, strict=True), "*", color=INK, markersize=6, label="IsoFLOP optima")
        if key == "d" and optima:
            axes.plot([one[0] for one in optima], [one[0] / float(per_sample(np.array([one[1]]))[0]) for one in optima], "*", color=INK,
                      markersize=6)
        if key == "y":
            axes.plot(c, found.points.y, ".", color=SOFT, markersize=3, zorder=1)
        if plan and "n" in plan:
            value = plan[{"n": "n", "d": "d", "y": "predicted"}[key]]
            axes.errorbar([plan["budget_flop"]], [value[0]], yerr=[[value[0] - value[1]], [value[2] - value[0]]], fmt="o", color=ACCENT,
                          markersize=4, linewidth=0.9, capsize=2, label="next budget")
        axes.set(xscale="log", yscale="log", xlabel="FLOPs of a training", title=label)
        if key == "n":
            axes.legend(loc="upper left", handletextpad=0.3)
        if key == "y":
            plain_ticks(axes)
    return figure


def one_variable(found: Analysis, held_out: Points | None) -> Figure | None:
    """Points and every law of one variable that was fitted, each drawn on beyond its points."""
    laws = {name: one for name, one in found.fits.items() if one.form.variables == ("x",)}
    if not laws:
        return None
    x = found.points.x["x"]
    far = max(x.max() * (x.max() / x.min()) ** 0.35, held_out.x["x"].max() * 1.2 if held_out is not None else 0)
    at = np.geomspace(x.min() / 1.2, far, 300)
    figure, (axes,) = new_figure(3.8, 2.8)
    axes.axvspan(x.max(), far, color="#f2f2f2", linewidth=0, zorder=0)
    if found.chosen in laws and found.chosen in found.draws:
        heights = laws[found.chosen].predict({"x": at}, found.draws[found.chosen].theta)
        low, high = np.nanquantile(np.where(np.isfinite(heights), heights, np.nan), (0.025, 0.975), axis=0)
        axes.fill_between(at, low, high, color=ACCENT, alpha=0.15, linewidth=0)
    for colour, (name, one) in zip(LINE_COLOURS, laws.items(), strict=False):
        chosen = name == found.chosen
        axes.plot(at, one.predict({"x": at}), color=ACCENT if chosen else colour, linewidth=1.6 if chosen else 0.9,
                  alpha=1 if chosen else 0.8, label=name + (" (chosen)" if chosen and len(laws) > 1 else ""), zorder=3 if chosen else 2)
    axes.plot(x, found.points.y, "o", markersize=3, color=INK, zorder=4)
    if held_out is not None:
        axes.plot(held_out.x["x"], held_out.y, "o", markersize=3, color=INK, markerfacecolor="white", markeredgewidth=0.8, zorder=4)
    axes.set(xscale="log", yscale="log", xlabel="x", ylabel=found.points.fitted)
    ys = np.concatenate([found.points.y, held_out.y if held_out is not None else []])
    axes.set_ylim(ys.min() / 1.35, ys.max() * 1.15)
    axes.set_title(
        "shaded: beyond what was fitted" + ("; hollow: held out" if held_out is not None else ""), loc="left", fontsize=6.5, color=SOFT)
    plain_ticks(axes)
    axes.legend(loc="lower left")
    return figure


def residuals(found: Analysis) -> Figure | None:
    """What the chosen law leaves: over compute, and their distribution against a normal one."""
    if found.chosen is None:
        return None
    law = found.fits[found.chosen]
    left = law.residuals * (100 if law.form.link == "log" else 1)
    order = order_of(found.points)
    figure, (over, tail) = new_figure(6.0, 2.4, columns=2, width_ratios=[1.7, 1])
    scale = law.scale * (100 if law.form.link == "log" else 1)
    over.axhspan(-2 * scale, 2 * scale, color="#eeeeee", linewidth=0)
    over.axhline(0, color=SOFT, linewidth=0.6)
    if "n" in found.points.x:
        shown = over.scatter(order, left, c=np.log10(found.points.x["n"]), cmap="viridis", s=14, linewidths=0, zorder=3)
        bar = figure.colorbar(shown, ax=over, pad=0.01, aspect=30)
        bar.set_label("log10 N", fontsize=7)
        bar.outline.set_linewidth(0)
    else:
        over.plot(order, left, "o", color=INK, markersize=3)
    for i in law.outliers:
        over.annotate(found.points.run[i].replace("$", r"\$"), (order[i], left[i]), fontsize=6, color=ACCENT, xytext=(3, 3),
                      textcoords="offset points")
    unit = "%" if law.form.link == "log" else found.points.metric
    over.set(xscale="log", xlabel="FLOPs of a training" if "c" in found.points.x else "x", ylabel=f"residual of {law.form.name}, {unit}")
    over.set_title("grey: two robust standard deviations", loc="left", fontsize=6.5, color=SOFT)
    from scipy.stats import norm

    places = norm.ppf((np.arange(len(left)) + 0.5) / len(left))
    tail.plot(places, np.sort(left), "o", color=INK, markersize=2.5)
    tail.plot(places[[0, -1]], places[[0, -1]] * scale, color=SOFT, linewidth=0.8)
    tail.set(xlabel="normal quantile", ylabel=f"ordered residual, {unit}")
    return figure


def profiles(found: Analysis) -> Figure | None:
    """How much worse the best fit gets as each parameter is moved: below the line is the 95 % interval."""
    told = found.profiles.get(found.chosen or "")
    if not told or all(len(one.values) < 3 for one in told.values()):
        return None
    columns = len(told) if len(told) <= 5 else 4
    rows = -(-len(told) // columns)
    figure, panels = new_figure(1.65 * columns, 1.55 * rows + 0.2, columns=columns, rows=rows)
    law = found.fits[found.chosen or ""]
    for axes, (name, one) in zip(panels, told.items(), strict=False):
        positive = name in law.form.positive
        near = np.isfinite(one.statistic) & (one.statistic < 6)
        # A positive parameter whose values span decades is shown by its logarithm: it may be far beyond any number.
        decades = positive and near.any() and np.ptp(one.values[near]) > 3
        turn = (lambda value: value / np.log(10)) if decades else np.exp if positive else (lambda value: value)
        with np.errstate(over="ignore"):
            values = turn(one.values[near])
            axes.plot(values, one.statistic[near], color=LINE_COLOURS[0])
            axes.axhline(1, color=SOFT, linewidth=0.6, linestyle=":")
            axes.axvline(turn(np.log(law.params[name]) if positive else law.params[name]), color=INK, linewidth=0.6)
            if one.low is not None and one.high is not None:
                axes.axvspan(turn(one.low), turn(one.high), color=LINE_COLOURS[0], alpha=0.12, linewidth=0)
        axes.set_ylim(0, 4)
        title = ("log10 " if decades else "") + name + ("" if one.identified else " (not identified)")
        axes.set_title(title, color=INK if one.identified else ACCENT)
        axes.locator_params(axis="x", nbins=3)
    for axes in panels[len(told) :]:
        axes.set_visible(False)
    figure.supylabel("test statistic over its 95 % limit", fontsize=7)
    return figure


def hold_out(verdict: Mapping[str, Any] | None) -> Figure | None:
    """What was said of the largest runs before they ran, and what they came to."""
    if not verdict or not verdict["runs"]:
        return None
    runs: Sequence[Mapping[str, Any]] = verdict["runs"]
    figure, (axes,) = new_figure(3.6, 0.9 + 0.28 * len(runs))
    for row, one in enumerate(runs):
        axes.plot([one["low"], one["high"]], [row, row], color=LINE_COLOURS[0], linewidth=3, alpha=0.35, solid_capstyle="butt")
        axes.plot(one["predicted"], row, "|", color=LINE_COLOURS[0], markersize=9, markeredgewidth=1.4)
        axes.plot(one["observed"], row, "o", color=INK if one["inside"] else ACCENT, markersize=4.5, zorder=3)
    axes.set_yticks(range(len(runs)), [str(one["run"]) for one in runs])
    axes.set_ylim(-0.6, len(runs) - 0.4)
    outside = "" if verdict["inside"] == verdict["of"] else ", red: outside"
    axes.set(xlabel=f"bar: predicted, 95 %; dot: observed{outside}")
    axes.set_title(
        f"{verdict['law']}, predicted {verdict['prediction_time'].replace('T', ' ')[:16]} UTC", loc="left", fontsize=6.5, color=SOFT)
    return figure
