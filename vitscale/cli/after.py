"""What is done with a trained model."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitscale.cli.app import Averaged, Device, Images, ModelArgument, ModelOption, WhichCheckpoint, app
from vitscale.counts import plural


@app.command("eval")
def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders or names, checkpoints, exported folders.")],
    what: Annotated[str, typer.Option(help="Some of accuracy,knn,linear,few-shot,retrieval; '' for --set and others alone.")] = "accuracy",
    data: Annotated[list[str] | None, typer.Option(help="Validation shards; default: the run's.")] = None,
    train_data: Annotated[list[str] | None, typer.Option("--train", help="Shards that probes learn from; default: the run's.")] = None,
    plain: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=SHARDS", help="Another set, such as ImageNet-V2.")] = None,
    subset: Annotated[list[str] | None, typer.Option(metavar="NAME=SHARDS", help="One with some of the classes: ImageNet-A, -R.")] = None,
    class_numbers: Annotated[Path | None, typer.Option("--map", help="Of --subset: for each of its classes the model's.")] = None,
    real: Annotated[list[str] | None, typer.Option(metavar="NAME=SHARDS", help="One with any number of right labels: ReaL.")] = None,
    corrupted: Annotated[Path | None, typer.Option(metavar="FOLDER", help="CORRUPTION/SEVERITY/*.tar, as ImageNet-C.")] = None,
    label: Annotated[str | None, typer.Option(help="As data.label; default: the run's, or cls.")] = None,
    class_map: Annotated[Path | None, typer.Option(help="As data.class_map; default: the run's.")] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Samples have any number of labels; a run's recipe says so.")] = False,
    layer: Annotated[str, typer.Option(help="Whose features are probed.")] = "pooled",
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    faiss: Annotated[bool, typer.Option("--faiss", help="Look for neighbours with faiss.")] = False,
    checkpoint: WhichCheckpoint = "last",
    ema: Averaged = False,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time, on each rank.")] = 64,
    processes: Annotated[int, typer.Option(min=1, help="Ranks on this machine.")] = 1,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Default: eval.json in the run's folder.")] = None,
) -> None:
    """How good trained models are: accuracy with intervals, neighbours, probes, retrieval, and other sets of images."""
    from vitscale.evaluate.evaluate import Request
    from vitscale.evaluate.ranks import run as judge
    from vitscale.evaluate.sets import parse_set

    sets = [parse_set(text, kind) for kind, texts in (("plain", plain), ("subset", subset), ("real", real)) for text in texts or []]
    kinds = tuple(part.strip() for part in what.split(",") if part.strip())
    requests = [Request(run, kinds, tuple(data or ()), tuple(train_data or ()), tuple(sets), corrupted, class_numbers, label, class_map,
                        layer, k, faiss, checkpoint, ema, batch, multi_label) for run in runs]
    raise typer.Exit(judge(requests, processes, device, out))


@app.command()
def predict(
    images: Images,
    model: ModelOption,
    top: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes.")] = 5,
    output: Annotated[str, typer.Option("--format", metavar="table|json|csv")] = "table",
    checkpoint: WhichCheckpoint = "last",
    ema: Averaged = False,
    class_map: Annotated[Path | None, typer.Option(help="Class names, one a line; default: those that the run knows.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Device = "auto",
) -> None:
    """What a trained model sees in images.  Those that cannot be read are listed, the rest is done, and the exit code is 2."""
    from vitscale.errors import RecipeError

    if output not in ("table", "json", "csv"):
        raise RecipeError(f"--format {output}: wants table, json or csv")
    from vitscale.evaluate.predict import as_csv, as_json, show
    from vitscale.evaluate.predict import predict as classify

    loaded, source = _opened(model, images, checkpoint, ema, class_map, device)
    rows = list(classify(loaded, source, top, batch))
    if output == "table":
        show(rows)
    else:
        print(as_json(rows) if output == "json" else as_csv(rows), end="\n" if output == "json" else "")
    _tell_unreadable([(row["image"], row["error"]) for row in rows if "error" in row], len(rows))


@app.command()
def embed(
    images: Images,
    model: ModelOption,
    out: Annotated[Path, typer.Option(metavar="FILE.npz|FILE.parquet")] = Path("features.npz"),
    layers: Annotated[list[str] | None, typer.Option("--layer", help="Any layer by name, several times; default: pooled.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Every token of a layer; default: their mean.")] = False,
    checkpoint: WhichCheckpoint = "last",
    ema: Averaged = False,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Device = "auto",
) -> None:
    """Features of images, for search, clustering or another model.  Those that cannot be read are listed, and the exit code is 2."""
    from vitscale.evaluate.embed import check_layers, write_features
    from vitscale.evaluate.embed import embed as extract
    from vitscale.evaluate.images import batches

    loaded, source = _opened(model, images, checkpoint, ema, None, device)
    wanted = layers or ["pooled"]
    check_layers(loaded.model, wanted)
    parts = batches(source, loaded.transform, batch, next(loaded.model.parameters()).device)
    names, found, bad = extract(loaded.model, parts, wanted, "none" if whole else "mean")
    write_features(out, names, found)
    print(f"{plural(len(names), 'image')}; wrote {out}: " + ", ".join(f"{layer} {list(value.shape)}" for layer, value in found.items()))
    _tell_unreadable(bad, len(names) + len(bad))


def _opened(model: str, images: list[str], checkpoint: str, ema: bool, class_map: Path | None, device: str) -> tuple[Any, Any]:
    """A trained model, and a source of images."""
    from vitscale.checkpoint.load import load
    from vitscale.evaluate.device import choose
    from vitscale.evaluate.images import open_images

    source = open_images(images)
    return load(model, checkpoint=checkpoint, ema=ema, device=choose(device), class_map=class_map), source


def _tell_unreadable(bad: list[tuple[str, str]], tried: int) -> None:
    """List what could not be read, of so many images, and end with exit code 2, if there is any."""
    from vitscale.errors import EXIT_WRONG_INPUT

    for name, why in bad:
        print(f"unreadable: {name}: {why}", file=sys.stderr)
    if bad:
        rest = "the rest was done" if tried > len(bad) else "there was no other"
        print(f"{plural(len(bad), 'image')} could not be read; {rest}", file=sys.stderr)
        raise typer.Exit(EXIT_WRONG_INPUT)


@app.command()
def explain(
    run: ModelArgument,
    images: Images,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where figures and index.html go.")] = Path("explained"),
    method: Annotated[list[str] | None, typer.Option(help="Several times; default: all that the model can do quickly.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Of the figures of attention, from 0, -1 the last; default: all.")] = None,
    head: Annotated[list[int] | None, typer.Option(help="The same; default: all.")] = None,
    target: Annotated[str | None, typer.Option(metavar="CLASS", help="Explain this class; default: the one that the model says.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Images at most.")] = 24,
    checkpoint: WhichCheckpoint = "last",
    ema: Averaged = False,
    class_map: Annotated[Path | None, typer.Option(help="Class names, one a line; default: those that the run knows.")] = None,
    device: Device = "auto",
) -> None:
    """What a model looks at in images, and what speaks for a class: figures, and one HTML page to explore them offline.

    Images that cannot be read are listed, the rest is done, and the exit code is 2.
    """
    loaded, source = _opened(run, images, checkpoint, ema, class_map, device)
    from vitscale.explain.command import Wish
    from vitscale.explain.command import explain as look_inside

    bad = look_inside(loaded, run, source, Wish(method or (), layer or (), head or (), target, limit), out)
    _tell_unreadable(bad, min(len(source), limit))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(
        metavar="RUN RUN...", help="Run folders or names, checkpoints, exported folders; a sweep: the runs of its largest budget.")],
    figure: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw accuracy against size, FLOPs and speed.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there too.")] = None,
    checkpoint: WhichCheckpoint = "last",
    batch: Annotated[int, typer.Option(min=1, help="Images of a batch whose speed and memory are measured.")] = 64,
    device: Device = "auto",
) -> None:
    """Models side by side: accuracy, parameters, FLOPs, speed, latency and memory, measured here."""
    from vitscale.evaluate import compare as side_by_side
    from vitscale.evaluate.device import choose
    from vitscale.runfolder import write_object
    from vitscale.scaling.collect import largest_of

    where = choose(device)
    chosen = []
    for name in runs:
        done, left_out = largest_of(name)
        chosen += done
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
    entries = side_by_side.compare(chosen, where, batch, checkpoint)
    side_by_side.show(entries, where, batch)
    if as_json:
        write_object(as_json, side_by_side.as_json(entries, where, batch))
    if figure:
        side_by_side.draw(entries, figure)
        print(f"wrote {figure}")


@app.command()
def export(
    run: ModelArgument,
    out: Annotated[Path, typer.Option(help="The new folder.")],
    output: Annotated[str, typer.Option("--format", metavar="transformers|timm|safetensors|onnx|torch-export")] = "transformers",
    checkpoint: WhichCheckpoint = "last",
    ema: Averaged = False,
    class_map: Annotated[Path | None, typer.Option(help="Class names, one a line; default: those that the run knows.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a model so that other programs load it, and check each answer against our own.

    A model with an option that the format has no expression for is refused, and the option named.
    """
    from vitscale.errors import RecipeError
    from vitscale.export import FORMATS

    if output not in FORMATS:
        raise RecipeError(f"--format {output}: wants one of {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise RecipeError(f"{out}: is not empty; name a new folder, or give --force")
    from vitscale.checkpoint.load import load
    from vitscale.export.write import write

    for line in write(load(run, checkpoint=checkpoint, ema=ema, class_map=class_map), output, out):
        print(line)


@app.command("import")
def bring_in(
    folder: Annotated[Path, typer.Argument(help="A folder of transformers' or timm's: config.json and safetensors.")],
    out: Annotated[Path, typer.Option(help="The new folder, which eval, predict, export and init= take.")],
) -> None:
    """Make another library's model one of ours, check it against that library, and print its model section for a recipe."""
    from vitscale.export.bring import bring

    for line in bring(folder, out):
        print(line)


@app.command()
def average(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders or names, checkpoints, exported folders.")],
    out: Annotated[Path, typer.Option(help="The new folder, which eval, predict, export and init= take.")],
    last: Annotated[int | None, typer.Option(min=2, metavar="N", help="Of each run its last N checkpoints.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take one in only if held-out accuracy does not fall by it.")] = False,
    data: Annotated[list[str] | None, typer.Option(help="The held-out shards; default: the run's data.val.")] = None,
    ema: Averaged = False,
    device: Device = "auto",
) -> None:
    """Average the weights of several checkpoints of one model: a soup, or the end of a run."""
    from vitscale.evaluate.device import choose
    from vitscale.export.average import gather, judge_on, mean_of
    from vitscale.export.average import greedy as choose_greedily
    from vitscale.export.folder import write_safetensors
    from vitscale.files import whole_folder

    models = gather(runs, last, ema)
    if greedy:
        kept = []
        for model, score, stays in choose_greedily(models, judge_on(tuple(data or ()), choose(device))):
            kept += [model] if stays else []
            print(f"{model.source}: top-1 {score:.2%} {'with it: kept' if stays else 'with it: left out'}")
        models = kept
    with whole_folder(out) as aside:
        write_safetensors(mean_of(models), aside)
    print(f"{out}: the mean of {plural(len(models), 'checkpoint')}")
