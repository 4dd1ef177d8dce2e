"""`vitscale compare`: models side by side, by what they get right, what they cost and how fast they are here; a table and a figure."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.checkpoint.load import Loaded, load
from vitscale.counts import plural
from vitscale.errors import RecipeError
from vitscale.evaluate.evaluate import FILE
from vitscale.metrics.of_objectives import TOP1
from vitscale.metrics.system import EVALUATED_IMAGES, SPEED
from vitscale.plan.forecast import known_forward_flops
from vitscale.runfolder import METRICS, last_row, read_object

WARM_UP, ROUNDS = 2, 5          # forward passes before the clock runs, and batches that are timed


@dataclass(frozen=True)
class ComparedModel:
    """One model, measured.  None: not measured."""

    name: str
    family: str
    image: int
    top1: float | None              # of its validation set
    interval: tuple[float, float] | None
    judged: str                     # where top1 is from
    parameters: int
    flops: int | None               # of one image's forward pass; None: its family has no analytic formulas
    images_seen: int | None         # in training
    training_flops: float | None    # 3 x forward x images seen
    training_images_per_s: float | None     # median over the run's steps
    latency_s: float                # median of one image at a time
    images_per_s: float             # in batches
    peak_bytes: int                 # parameters and activations of a batch, in the forward pass
    on: str = ""                    # the set that top1 is of: its shards, and how many images were read


def compare(runs: Sequence[str], device: torch.device, batch: int = 64, checkpoint: str = "last") -> list[ComparedModel]:
    """Measure each model here, in turn.  Raises RecipeError for fewer than two, CheckpointError for what cannot be loaded."""
    if len(runs) < 2:
        raise RecipeError("compare wants two models at least")
    models = [load(run, checkpoint=checkpoint, device=device) for run in runs]
    inputs = [torch.randn(batch, one.transform.channels, one.transform.image, one.transform.image, device=device) for one in models]
    latencies = seconds([(one.model, images[:1]) for one, images in zip(models, inputs, strict=True)], device)
    times = seconds([(one.model, images) for one, images in zip(models, inputs, strict=True)], device)
    return [_entry(run, loaded, latency, batch / taken, peak_bytes(loaded.model, images))
            for run, loaded, latency, taken, images in zip(runs, models, latencies, times, inputs, strict=True)]


def _entry(run: str, loaded: Loaded, latency_s: float, images_per_s: float, peak: int) -> ComparedModel:
    folder = loaded.source.parent.parent.parent if loaded.recipe else loaded.source.parent
    top1, interval, judged, on = _accuracy(folder, loaded)
    flops, seen = known_forward_flops(loaded.section), _images_seen(loaded)
    return ComparedModel(
        name=loaded.recipe.name if loaded.recipe else Path(run).name, family=loaded.section.family, image=loaded.transform.image, top1=top1,
        interval=interval, judged=judged, parameters=sum(parameter.numel() for parameter in loaded.model.parameters()), flops=flops,
        images_seen=seen, training_flops=3.0 * flops * seen if flops is not None and seen is not None else None,
        training_images_per_s=_training_speed(folder, loaded), latency_s=latency_s, images_per_s=images_per_s, peak_bytes=peak,
        on=on,
    )


@torch.inference_mode()
def seconds(works: Sequence[tuple[nn.Module, Tensor]], device: torch.device) -> list[float]:
    """The median of each over ROUNDS, after a warm-up; they take turns, so that a busy machine slows all of them alike."""
    def once(model: nn.Module, images: Tensor) -> float:
        started = time.perf_counter()
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    rounds = [[once(model, images) for model, images in works] for _ in range(WARM_UP + ROUNDS)]
    return [statistics.median(taken) for taken in zip(*rounds[WARM_UP:], strict=True)]


@torch.no_grad()
def peak_bytes(model: nn.Module, images: Tensor) -> int:
    """The most memory that tensors take at once in a forward pass, the parameters and the images among them."""
    if images.device.type == "cuda":
        others = torch.cuda.memory_allocated(images.device) - images.nbytes - sum(one.nbytes for one in model.parameters())
        torch.cuda.reset_peak_memory_stats(images.device)
        model(images)
        return int(torch.cuda.max_memory_allocated(images.device) - others)
    from torch.distributed._tools.mem_tracker import MemTracker

    learning = [parameter.requires_grad for parameter in model.parameters()]
    tracker = MemTracker()
    try:
        model.requires_grad_(True)          # it wants to watch gradients, of which there will be none
        tracker.track_external(model, images)
        with tracker:
            model(images)
        return int(tracker.get_tracker_snapshot("peak")[images.device]["Total"])
    finally:
        for parameter, learns in zip(model.parameters(), learning, strict=True):
            parameter.requires_grad_(learns)


def _accuracy(folder: Path, loaded: Loaded) -> tuple[float | None, tuple[float, float] | None, str, str]:
    """What `vitscale eval` found of these weights, else the run's own evaluation at their step; and of which set.

    A run without labels was judged by a task of its own, such as which of four ways an image was turned, which is no accuracy over classes.
    """
    if loaded.recipe is not None and not loaded.recipe.objective.wants_labels:
        return None, None, f"not over classes: it was trained for {loaded.recipe.objective.name}", ""
    known = read_object(folder / FILE)
    found = known.get("results", {}).get("accuracy", {}).get("top1")
    if found and known.get("step") == loaded.step:
        on = f"{plural(int(known.get('images') or 0), 'image')} of {', '.join(map(str, known.get('data', ())))}"
        return found["value"], tuple(found["interval"]), FILE, on
    row = last_row(folder / METRICS, TOP1.column)
    if row and row.get("step") == loaded.step:
        from vitscale.evaluate.metrics import interval

        count, share = int(row[EVALUATED_IMAGES.column]), row[TOP1.column]
        val = loaded.recipe.data.val if loaded.recipe else None
        return share, interval(share * count, count), "training", f"{plural(count, 'image')} of {', '.join(val or ())}"
    return None, None, "not measured: vitscale eval", ""


def _images_seen(loaded: Loaded) -> int | None:
    about = read_object(loaded.source.parent / "run.json") if loaded.recipe else {}
    position = about.get("data", {}).get("position")
    return int(position) if position is not None else None


def _training_speed(folder: Path, loaded: Loaded) -> float | None:
    from vitscale.observe.jsonl import read_rows

    if loaded.recipe is None or not (folder / METRICS).is_file():
        return None
    speeds = [row[SPEED.column] for row in read_rows(folder / METRICS) if row.get(SPEED.column)]
    return statistics.median(speeds) if speeds else None


def as_json(entries: Sequence[ComparedModel], device: torch.device, batch: int) -> dict[str, Any]:
    return {"device": str(device), "threads": torch.get_num_threads(), "batch": batch, "models": [asdict(entry) for entry in entries]}


def show(entries: Sequence[ComparedModel], device: torch.device, batch: int) -> None:
    """The table on the terminal, a row for each model, and who is best at what."""
    from vitscale.terminal import console, escape, table

    heads = ("model", "family", "top-1", "interval", "parameters", "GFLOP", "trained on", "train img/s", "latency", "img/s", "memory")
    rows = [(one.name, one.family, _or(one.top1, "{:.2%}"), f"{one.interval[0]:.1%} to {one.interval[1]:.1%}" if one.interval else "",
             f"{one.parameters:,}", "not known" if one.flops is None else f"{one.flops / 1e9:.3g}", _or(one.images_seen, "{:,}"),
             _or(one.training_images_per_s, "{:,.0f}"), f"{one.latency_s * 1e3:.2f} ms", f"{one.images_per_s:,.0f}",
             f"{one.peak_bytes / 1e6:.1f} MB") for one in entries]
    out = console()
    out.print(table(heads, rows, words=(0, 1), fold=True))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {plural(torch.get_num_threads(), 'thread')}"
    out.print(f"latency of one image, speed and memory in batches of {batch}, fp32, on {escape(where)}")
    for line in verdict(entries):
        out.print(line)


def _or(value: Any, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def verdict(entries: Sequence[ComparedModel]) -> list[str]:
    """In words: who is right most often, and whether the gap is more than chance; who is fastest; who was not trained on as much."""
    judged = sorted((entry for entry in entries if entry.top1 is not None), key=lambda entry: -(entry.top1 or 0))
    said = []
    if len({entry.on for entry in judged}) > 1:
        sets = ", ".join(f"{entry.name} on {entry.on}" for entry in judged)
        said.append(f"their accuracies are of different sets and are not held side by side: {sets}; `vitscale eval --data` measures on one")
    elif len(judged) > 1 and judged[0].interval and judged[1].interval:
        first, second = judged[0], judged[1]
        clear = first.interval[0] > second.interval[1]      # type: ignore[index]
        said.append(f"{first.name} is right most often, by {first.top1 - second.top1:.2%} over {second.name}: "     # type: ignore[operator]
                    + ("more than chance" if clear else "their intervals overlap, so on this set they are not told apart"))
    fastest, smallest = max(entries, key=lambda entry: entry.images_per_s), min(entries, key=lambda entry: entry.parameters)
    said.append(f"{fastest.name} is the fastest in batches, {smallest.name} the smallest")
    seen = {entry.images_seen for entry in entries}
    if len(seen) > 1:
        said.append("they were not trained on as many images, so accuracies compare runs, not architectures")
    return said


def draw(entries: Sequence[ComparedModel], path: Path) -> None:
    """Accuracy against parameters, FLOPs and speed, as PNG, SVG or PDF by the file's name.  Raises RecipeError if none was judged."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    judged = [entry for entry in entries if entry.top1 is not None]
    if not judged:
        raise RecipeError("--figure: no model has an accuracy to draw; run `vitscale eval` on them first")
    families = list(dict.fromkeys(entry.family for entry in entries))
    axes: list[tuple[str, Callable[[ComparedModel], float | None]]] = [
        ("parameters", lambda entry: entry.parameters), ("FLOP of an image", lambda entry: entry.flops),
        ("images/s in batches", lambda entry: entry.images_per_s), ("latency of one image, ms", lambda entry: entry.latency_s * 1e3)]
    axes = [(label, value) for label, value in axes if any(value(entry) is not None for entry in judged)]
    figure, plots = pyplot.subplots(1, len(axes), figsize=(3.4 * len(axes), 3.4), sharey=True, constrained_layout=True)
    for plot, (label, value) in zip(plots, axes, strict=True):
        known = [(entry, number) for entry in judged if (number := value(entry)) is not None]
        for entry, number in known:
            top1, colour = 100 * float(entry.top1 or 0), f"C{families.index(entry.family)}"
            low, high = (100 * end for end in entry.interval) if entry.interval else (top1, top1)
            plot.errorbar(number, top1, yerr=[[top1 - low], [high - top1]], fmt="o", color=colour, capsize=3)
            plot.annotate(entry.name, (number, top1), xytext=(5, 5), textcoords="offset points", fontsize=8)
        values = [number for _, number in known]
        if max(values) > 3 * min(values):
            plot.set_xscale("log")
            plot.xaxis.set_minor_formatter(ticker.NullFormatter())
        else:
            plot.xaxis.set_major_locator(ticker.MaxNLocator(4))
        plot.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        plot.set_xlabel(label)
        plot.margins(x=0.35, y=0.15)
        plot.grid(alpha=0.3, which="both")
    handles = [pyplot.Line2D([], [], marker="o", linestyle="", color=f"C{number}", label=name) for number, name in enumerate(families)]
    plots[-1].legend(handles=handles, fontsize=8, loc="lower right")
    plots[0].set_ylabel("top-1, %, with 95 % interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=110)
    except ValueError as error:
        raise RecipeError(f"--figure {path}: {error}") from None
    finally:
        pyplot.close(figure)
