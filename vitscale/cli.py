"""The command line: one function per command; what a command needs is imported inside it, so that --help is quick."""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitscale.errors import EXIT_REQUEUE, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Pretrain Vision Transformers from one YAML recipe.")
recipes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and check recipes; needs no shards.")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pack, index, check and look into WebDataset shards.")
job_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What the batch scripts of slurm/ ask; not for people.")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(job_app, name="job", hidden=True)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as optim.lr=3e-4; values are YAML.")]
Shards = Annotated[list[str], typer.Argument(help="Brace URLs or globs of shards, quoted.")]


def main() -> None:
    """Entry point: a user's mistake ends in one clear message and its exit code, never in a traceback."""
    code: str | int | None = None
    try:
        app()
    except UserError as error:
        print(f"vitscale: {error}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as end:
        code = EXIT_REQUEUE if end.code == 130 else end.code        # typer's code for an interrupt from the keyboard
    if "torch" in sys.modules and isinstance(code, int):
        # Python would take apart all that torch has imported: a second of a core, for which a launcher and the next attempt wait.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="Go on although model, data, seed or batch differ.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Start again after a crash or a hang, where no scheduler does.")] = False,
) -> None:
    """Train a recipe, or go on with its run.

    Starts one process per local GPU (on a CPU: parallel.processes), or joins the ranks that torchrun or SLURM started.
    """
    from vitscale.resilience.signals import listening
    from vitscale.train.start import train as start

    with listening() as stop:       # from the first moment on: imports and indexing take a while too
        raise typer.Exit(start(recipe, overrides or [], accept_changes, keep_going, stop))


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Default: the machine alone, no run folder, no shards.")] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine (inside srun: all nodes) for a recipe: devices, exchange, disk, shards, versions, clocks.

    Exit code 0: nothing would end a run; 2: something would, and the table says what.
    """
    from vitscale.recipe import load_recipe

    read = load_recipe(recipe or "quickstart", overrides or [])
    from vitscale.train.doctor import doctor as examine

    raise typer.Exit(examine(read, recipe is not None, as_json))


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[str | None, typer.Option(metavar="NODESxGPUSxGPU", help="4x8xH200, 8xA100, cpu, ...; default: cluster.yaml's.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a GPU-hour, in any currency; default: cluster.yaml's.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Assume this share of the peak for one GPU that waits for nobody, 0..1.")] = None,
    measured: Annotated[Path | None, typer.Option(metavar="FILE", help="Take it from `vitscale bench step --save FILE` instead.")] = None,
    storage: Annotated[float | None, typer.Option(metavar="GB/S", help="What all nodes together can read; default: enough.")] = None,
    image_kb: Annotated[float | None, typer.Option(help="Of a stored image; default 110.")] = None,
    images_per_core: Annotated[float | None, typer.Option(help="Images that a core decodes in a second; default 865.")] = None,
    mtbf: Annotated[float | None, typer.Option(metavar="HOURS", help="Between failures of one GPU; default 50000.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Also track the memory of the real model on fake tensors; loads torch.")] = False,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a copy of the recipe with what is proposed.")] = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the memory of a GPU.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./slurm/cluster.yaml, then the user's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON; the keys stay: docs/planner.md.")] = False,
) -> None:
    """Say what a recipe needs and costs on hardware: memory, speed, days, money, what limits it, what would be better.  No torch.

    Exit code 0: it fits; 2: it does not, and the page says what would.
    """
    from vitscale.cluster.planned import with_site
    from vitscale.plan.command import Options, as_text, plan_command

    options = with_site(Options(on or "", price, mfu, measured, storage, image_kb, images_per_core, mtbf, write, figure), cluster)
    found, code = plan_command(recipe, overrides or [], options)
    if exact:
        from vitscale.train.exact import hold_against

        found = hold_against(found, recipe, overrides or [], options)
    if as_json:
        print(as_text(found))
    else:
        from rich.console import Console

        from vitscale.plan.report import show_plan

        show_plan(found, Console())
    raise typer.Exit(code)


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of one in ./runs.")]


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe as for train; or for an array a folder of recipes, or a list.")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="Default: cluster.yaml's.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="And ranks; default: cluster.yaml's.")] = None,
    limit: Annotated[str | None, typer.Option("--time", metavar="[D-]HH:MM:SS", help="Time limit; default: cluster.yaml's.")] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Start when that job has ended.")] = None,
    chain: Annotated[str | None, typer.Option(metavar="K|auto", help="K jobs one after the other, where jobs may not requeue.")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Of an array: tasks that run at the same time; default: all.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./slurm/cluster.yaml, then the user's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the script; submit nothing.")] = False,
) -> None:
    """Plan a run, or a folder of them as an array; write the batch script, show it, and submit it to SLURM."""
    from vitscale.cluster.bill import describe
    from vitscale.cluster.site import find_site
    from vitscale.cluster.submit import plan_run, plan_sweep, send, with_options
    from vitscale.errors import ClusterError

    found, source = find_site(cluster)
    site = with_options(found, nodes=nodes, gpus_per_node=gpus_per_node, time=limit)
    if Path(recipe).is_dir() or Path(recipe).suffix == ".txt":
        if chain is not None:
            raise ClusterError("--chain is for one run; the tasks of an array requeue themselves")
        planned = plan_sweep(Path(recipe), overrides or [], site, after, at_once)
    else:
        if at_once is not None:
            raise ClusterError("--at-once is for an array: a folder of recipes, or a .txt file that lists them")
        planned = plan_run(recipe, overrides or [], site, after, chain)
    print(f"cluster {source or 'not described: no cluster.yaml found, SLURM decides'}")
    for folder, its in zip(planned.folders, planned.bills, strict=True):
        print("\n".join([f"\n{folder}", *describe(its, site)]))
    print(f"\n{planned.path}:\n\n{planned.script}")
    if not dry_run:
        print(f"submitted: {' '.join(send(planned))}")


@app.command()
def status(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or one run's.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: a list of objects.")] = False,
    all_runs: Annotated[bool, typer.Option("--all", help="Also those for which a terminal has no lines; a pipe gets all.")] = False,
) -> None:
    """How the runs of a folder are doing, and which jobs are in SLURM's queue: on one screen."""
    import json
    import shutil

    from vitscale.cluster.slurm import queue
    from vitscale.cluster.status import as_json as plain
    from vitscale.cluster.status import on_one_screen, others, runs_in, status_of, table

    jobs, folders = queue(), runs_in(runs)
    found = [status_of(folder, jobs) for folder in folders]
    if as_json:
        print(json.dumps(plain(found), indent=1))
        return
    width, height = shutil.get_terminal_size((200, 50))
    below = others(folders, jobs, width)
    room = height - len(below) - 3 if sys.stdout.isatty() and not all_runs else len(found)      # the heads, what is left out, the prompt
    shown, rest = on_one_screen(found, room)
    for line in [*table(shown, width), *([rest] if rest else []), *below]:
        print(line)


@app.command()
def logs(
    run: RunArgument,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until interrupted.")] = False,
) -> None:
    """What a rank of a run has written down last."""
    import contextlib

    from vitscale.cluster.logs import logs_of, show
    from vitscale.cluster.runfolder import find_run

    with contextlib.suppress(KeyboardInterrupt):        # that is how following ends
        show(logs_of(find_run(run), rank), lines, follow, lambda line: print(line, flush=True))


@app.command()
def cancel(runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or names of some in ./runs.")]) -> None:
    """End the jobs of runs, those that wait too.  Running ones save first, as far as SLURM's KillWait lets them; none is requeued."""
    from vitscale.cluster.runfolder import find_run
    from vitscale.cluster.submit import cancel_runs

    print(f"cancelled: {' '.join(cancel_runs([find_run(run) for run in runs]))}")

ModelArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder or its name, a checkpoint, or an exported folder.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", metavar="RUN", help="A run folder or its name, a checkpoint, or an export.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, globs, shards (quoted).")]
WhichCheckpoint = Annotated[str, typer.Option("--checkpoint", metavar="last|best|STEP", help="Of a run folder.")]
Averaged = Annotated[bool, typer.Option("--ema", help="The averaged weights, if the run kept them.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


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
    _tell_unreadable([(row["image"], row["error"]) for row in rows if "error" in row])


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
    print(f"{len(names):,} images; wrote {out}: " + ", ".join(f"{layer} {list(value.shape)}" for layer, value in found.items()))
    _tell_unreadable(bad)


def _opened(model: str, images: list[str], checkpoint: str, ema: bool, class_map: Path | None, device: str) -> tuple[Any, Any]:
    """A trained model, and a source of images."""
    from vitscale.checkpoint.load import load
    from vitscale.evaluate.device import choose
    from vitscale.evaluate.images import open_images

    source = open_images(images)
    return load(model, checkpoint=checkpoint, ema=ema, device=choose(device), class_map=class_map), source


def _tell_unreadable(bad: list[tuple[str, str]]) -> None:
    """List what could not be read, and end with exit code 2, if there is any."""
    from vitscale.errors import EXIT_WRONG_INPUT

    for name, why in bad:
        print(f"unreadable: {name}: {why}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} image{'s' if len(bad) > 1 else ''} could not be read; the rest was done", file=sys.stderr)
        raise typer.Exit(EXIT_WRONG_INPUT)

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
    requests = [Request(run, tuple(part.strip() for part in what.split(",") if part.strip()), tuple(data or ()), tuple(train_data or ()),
                        tuple(sets), corrupted, class_numbers, label, class_map, layer, k, faiss, checkpoint, ema, batch) for run in runs]
    raise typer.Exit(judge(requests, processes, device, out))


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


bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure this machine with a recipe, part by part.")
app.add_typer(bench_app, name="bench")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@bench_app.command("step")
def bench_step(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="That are measured.")] = 20,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them.")] = 5,
    micro_steps: Annotated[int, typer.Option(min=1, help="Micro-batches of a step.")] = 1,
    ranks: Annotated[int | None, typer.Option(min=1, help="That are started on this machine; default: this process alone.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="For `vitscale plan --measured FILE`.")] = None,
    as_json: AsJson = False,
) -> None:
    """A training step on made-up images: images/s, MFU against both peaks, peak memory, time by phase."""
    from vitscale.bench.command import on_ranks, read

    found = read(recipe, overrides or [])
    from vitscale.bench import step

    raise typer.Exit(on_ranks(found, ranks, lambda world: step.measure_step(found, world, steps, warm_up, micro_steps),
                              f"A training step of {found.name}", as_json, (lambda facts: step.save(save, facts)) if save else None))


@bench_app.command("data")
def bench_data(
    recipe: RecipeArgument, overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0, help="To measure for.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """A recipe's shards to batches: images/s, per CPU-second, and the GPUs that feeds."""
    from vitscale.bench.command import read
    from vitscale.bench.figures import show

    found = read(recipe, overrides or [])
    from vitscale.bench.loader import measure_loader
    from vitscale.train.prepare import training_set

    show(f"The data of {found.name}", *measure_loader(found, training_set(found), seconds), as_json)


@bench_app.command("comm")
def bench_comm(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="Whose parallel section is used.")] = "quickstart",
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="That are started on this machine, unless srun or torchrun has.")] = 2,
    largest: Annotated[int, typer.Option(min=4096, metavar="BYTES")] = 64 << 20,
    as_json: AsJson = False,
) -> None:
    """All-reduce and all-gather over all ranks: bandwidth by size."""
    from vitscale.bench.command import on_ranks, read

    found = read(recipe, overrides or [])
    from vitscale.bench.exchange import measure_exchange

    raise typer.Exit(on_ranks(found, ranks, lambda world: measure_exchange(world, largest), "Exchanges", as_json))


@bench_app.command("checkpoint")
def bench_checkpoint(
    recipe: RecipeArgument, overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="On the disk that is meant.")] = Path("."),
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    as_json: AsJson = False,
) -> None:
    """Checkpoints of a recipe's model on a disk: how long training stands still, and how long until they are safe."""
    from vitscale.bench.command import on_ranks, one_rank, read

    found = one_rank(read(recipe, overrides or []), "bench checkpoint")
    from vitscale.bench.checkpoint import measure_checkpoint

    raise typer.Exit(on_ranks(found, 1, lambda world: measure_checkpoint(found, world, folder, repeats),
                              f"A checkpoint of {found.name}", as_json))


@bench_app.command("startup")
def bench_startup(repeats: Annotated[int, typer.Option(min=1)] = 3, as_json: AsJson = False) -> None:
    """From a command to the first step: Python, imports, a run of the quickstart."""
    from vitscale.bench.figures import show
    from vitscale.bench.startup import measure_startup

    show("Start-up", *measure_startup(repeats), as_json)


@app.command()
def monitor(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or one run's.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8420,
    host: Annotated[str, typer.Option(help="The address to listen at; other than loopback a token is asked for.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="To be asked for; default: none on loopback, elsewhere one is made.")] = None,
    prometheus: Annotated[Path | None, typer.Option(metavar="DIR", help="Instead: write what Prometheus and Grafana want there.")] = None,
) -> None:
    """The dashboard of all runs under a folder, in a browser; or the files for Prometheus and Grafana."""
    if prometheus is not None:
        from vitscale.observe.prometheus_files import write_prometheus

        print("\n".join(write_prometheus(runs, prometheus)))
        return
    from vitscale.observe.dashboard import serve

    serve(runs, host=host, port=port, token=token)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: report.html in the run folder.")] = None,
) -> None:
    """Write a run's page as one file that needs neither server nor network."""
    from vitscale.cluster.runfolder import find_run
    from vitscale.observe.report import write_report

    print(f"wrote {write_report(find_run(run), out)}")


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

    models = gather(runs, last, ema)
    if greedy:
        kept = []
        for model, score, stays in choose_greedily(models, judge_on(tuple(data or ()), choose(device))):
            kept += [model] if stays else []
            print(f"{model.source}: top-1 {score:.2%} {'with it: kept' if stays else 'with it: left out'}")
        models = kept
    write_safetensors(mean_of(models), out)
    print(f"{out}: the mean of {len(models)} checkpoint{'s' if len(models) > 1 else ''}")


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
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run folders or names, checkpoints, exported folders.")],
    figure: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw accuracy against size, FLOPs and speed.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there too.")] = None,
    checkpoint: WhichCheckpoint = "last",
    batch: Annotated[int, typer.Option(min=1, help="Images of a batch whose speed and memory are measured.")] = 64,
    device: Device = "auto",
) -> None:
    """Models side by side: accuracy, parameters, FLOPs, speed, latency and memory, measured here."""
    from vitscale.cluster.runfolder import write_object
    from vitscale.evaluate import compare as side_by_side
    from vitscale.evaluate.device import choose

    where = choose(device)
    entries = side_by_side.compare(runs, where, batch, checkpoint)
    side_by_side.show(entries, where, batch)
    if as_json:
        write_object(as_json, side_by_side.as_json(entries, where, batch))
    if figure:
        side_by_side.draw(entries, figure)
        print(f"wrote {figure}")


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep recipe, or the name of a shipped one (quickstart).")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where everything goes; default: sweeps/NAME.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time on this machine.")] = 1,
    submit: Annotated[bool, typer.Option("--submit", help="As an array on SLURM instead; the same command goes on with it later.")] = False,
    at_once: Annotated[int | None, typer.Option(min=1, help="Of an array: tasks that run at the same time; default: all.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./slurm/cluster.yaml, then the user's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the bill; start nothing.")] = False,
) -> None:
    """Many runs from one recipe: shows the bill, runs or submits what is not done, predicts the largest before it runs, fits.

    Killed at any moment, the same command goes on; a run that is done never runs again.
    """
    from vitscale.cluster.site import find_site
    from vitscale.cluster.sweep import sweep as go_on

    raise typer.Exit(go_on(recipe, out, jobs, submit, dry_run, find_site(cluster)[0], at_once))


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(metavar="SWEEP_DIR|CSV", help="The folder of a sweep, or a CSV with a row for each point.")],
    form: Annotated[str | None, typer.Option(help="Forms, with commas; default: those the columns allow, chosen by backtest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: the sweep's folder, or NAME-fit beside the CSV.")] = None,
    n: Annotated[str | None, typer.Option("--n", metavar="COLUMN", help="Model size.  Any column may be scaled: 'Size (M)*1e6'.")] = None,
    d: Annotated[str | None, typer.Option("--d", metavar="COLUMN", help="Samples or tokens seen.")] = None,
    u: Annotated[str | None, typer.Option("--u", metavar="COLUMN", help="Unique samples.")] = None,
    c: Annotated[str | None, typer.Option("--c", metavar="COLUMN", help="FLOPs of the training.")] = None,
    x: Annotated[str | None, typer.Option("--x", metavar="COLUMN", help="The one variable of a law in one.")] = None,
    t: Annotated[str | None, typer.Option("--t", metavar="COLUMN", help="FLOPs, of a shape law in --x.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="COLUMN", help="A metric that falls.")] = None,
    accuracy: Annotated[str | None, typer.Option(metavar="COLUMN", help="A metric that rises to --bound; what it lacks is fitted.")] = None,
    bound: Annotated[float, typer.Option(help="Of --accuracy: 1, or 100 for per cent.")] = 1.0,
    run: Annotated[str | None, typer.Option(metavar="COLUMN", help="Which points are of one run; default: each its own.")] = None,
    where: Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only such rows.")] = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN,...", help="Fit each value of these columns by itself.")] = None,
    train: Annotated[str | None, typer.Option(metavar="COLUMN", help="1 or true: fitted; all others are held out.")] = None,
    hold_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of points, those of the largest budgets, held out.")] = 0.0,
    flops_per: Annotated[float | None, typer.Option(help="FLOPs = this x n x d where no column gives them (6 for text).")] = None,
    fix: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter that is known.")] = None,
    delta: Annotated[float | None, typer.Option(help="Of Huber's function; default: the form's, else by the residuals.")] = None,
    drop_outliers: Annotated[bool, typer.Option("--drop-outliers", help="Fit again without points named as outliers.")] = False,
    draws: Annotated[int, typer.Option(min=50, help="Of the bootstrap.")] = 400,
    budget: Annotated[str | None, typer.Option(help="Plan for 1e21 (FLOP), '500 GPU-hours on H100', '2000 EUR at 2.5 on H100'.")] = None,
    serve: Annotated[float, typer.Option(min=0, help="Images the model will be asked of later: their FLOPs count too.")] = 0.0,
    figures: Annotated[bool, typer.Option(help="Draw them.")] = True,
) -> None:
    """Fit scaling laws to a sweep or a CSV: numbers with intervals, a choice by backtest, figures, and what to train next."""
    from vitscale.scaling.analyse import Asked
    from vitscale.scaling.command import columns_of, fit_csv, fixed_of, forms_of

    asked = Asked(forms_of(form), delta, fixed_of(fix or []), drop_outliers, draws, hold_out=hold_out)
    if data.is_dir():
        from vitscale.scaling.report import fit_sweep

        fit_sweep(data, asked, out or data, budget, serve, figures)
        return
    columns = columns_of({"n": n, "d": d, "u": u, "c": c, "x": x, "t": t}, loss, accuracy, bound, run, where or [], flops_per)
    fit_csv(data, columns, asked, out or data.with_name(f"{data.stem}-fit"), by, train, figures, budget, serve)


@recipes_app.command("list")
def recipes_list() -> None:
    """Every recipe that vitscale ships, with the first line of its header."""
    from rich.console import Console
    from rich.table import Table

    from vitscale.recipe import RECIPES, recipe_files

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    for path in recipe_files():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(str(path.relative_to(RECIPES).with_suffix("")), first.lstrip("# ") if first.startswith("#") else "")
    Console().print(table)


@recipes_app.command("show")
def recipes_show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """A recipe with every default and override filled in."""
    from vitscale.recipe import load_recipe
    from vitscale.recipe.text import write_yaml

    print(write_yaml(load_recipe(recipe, overrides or []).model_dump(mode="json")), end="")


@recipes_app.command("check")
def recipes_check(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[FILE|FOLDER]...", help="Default: the shipped recipes.")] = None,
) -> None:
    """Check recipes without opening a shard; lists every mistake of every file."""
    from vitscale.errors import EXIT_WRONG_INPUT, RecipeError
    from vitscale.plan.params import count_params
    from vitscale.plan.tensor import check_tensor
    from vitscale.recipe import RECIPES, load_recipe, recipe_files

    wrong = 0
    for path in paths or [RECIPES]:
        files = recipe_files(path) if path.is_dir() else [path]
        if not files:
            wrong += 1
            print(f"{path}: holds no recipes (*.yaml)", file=sys.stderr)
        for file in files:
            try:
                recipe = load_recipe(file)
                check_tensor(recipe)
                print(f"{file}: sound; {count_params(recipe.model, recipe.objective):,} parameters")
            except RecipeError as error:
                wrong += 1
                text = str(error)
                print(text if text.startswith(str(file)) else f"{file}: {text}", file=sys.stderr)
    if wrong:
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

    _tell_unreadable(look_inside(loaded, run, source, Wish(method or (), layer or (), head or (), target, limit), out))


@recipes_app.command("schema")
def recipes_schema() -> None:
    """The JSON Schema of a recipe, for editors."""
    import json

    from vitscale.recipe.jsonschema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@data_app.command("quickstart")
def data_quickstart(folder: Annotated[Path, typer.Argument(help="Where the shards go.")] = Path("data/digits")) -> None:
    """Pack scikit-learn's 1,797 handwritten digits into shards."""
    from vitscale.data.quickstart import pack_digits

    pack_digits(folder)
    print(f"packed into {folder}")


@data_app.command("pack")
def data_pack(
    source: Annotated[str, typer.Argument(help="A folder with a folder per class, a .csv or .parquet manifest, or shards (quoted).")],
    out: Annotated[Path, typer.Argument(help="The folder of the new shards; one for each split.")],
    prefix: Annotated[str, typer.Option(help="Shards are OUT/PREFIX-000000.tar and on.")] = "shard",
    shard_samples: Annotated[int | None, typer.Option(help="Samples of a shard; default 1000.")] = None,
    shard_bytes: Annotated[int | None, typer.Option(help="Instead: bytes of the source images of a shard, about.")] = None,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="Mix the samples; default: 0 for folders and manifests.")] = None,
    no_shuffle: Annotated[bool, typer.Option("--no-shuffle", help="Keep the source's order; the default for shards.")] = False,
    resize: Annotated[int | None, typer.Option(metavar="PIXELS", help="Shrink the shorter side to this; never enlarges.")] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of images that were shrunk.")] = 90,
    classes: Annotated[Path | None, typer.Option(help="Class names, one a line, in the order of their numbers; default: sorted.")] = None,
    path_column: Annotated[str, typer.Option(help="Manifest: where the path stands, relative to the manifest's folder.")] = "path",
    label_column: Annotated[str, typer.Option(help="Manifest: where the class number or name stands; '' for no labels.")] = "label",
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Exit with 0 although images were bad and left out.")] = False,
) -> None:
    """Pack images into shards, in parallel; goes on where a killed pack stopped.

    Every image is decoded first: bad ones are left out and listed in OUT/bad.jsonl, and the exit code is 2.  Folders and manifests are
    mixed by a seed, since shards that hold one class each train badly.  The same source gives the same bytes.
    """
    from vitscale.data.labels import read_class_map
    from vitscale.data.pack import BAD, Options, pack
    from vitscale.data.progress import bar
    from vitscale.data.report import plural, size
    from vitscale.data.sources import open_source
    from vitscale.errors import EXIT_WRONG_INPUT, DataError
    from vitscale.plan.hardware import usable_cores

    if no_shuffle and shuffle is not None:
        raise DataError("give one of --shuffle and --no-shuffle")
    if Path(source).is_dir() and out.absolute().resolve().is_relative_to(Path(source).resolve()):
        raise DataError(f"{out}: lies inside the source; name a folder outside it")
    names = list(read_class_map(classes)) if classes else ()
    opened = open_source(source, path_column=path_column, label_column=label_column, classes=names)
    seed = None if no_shuffle else shuffle if shuffle is not None or opened.mixed else 0
    options = Options(prefix, shard_samples if shard_samples or shard_bytes else 1000, shard_bytes, seed, resize, quality)
    with bar("packing", "images") as show:
        packed = pack(opened, out, options, workers=workers or usable_cores(), on_progress=show)
    kept = f"; {packed.kept} shards were there already" if packed.kept else ""
    order = "" if opened.mixed or seed is None else f"; mixed by seed {seed}"
    ignored = f"; {opened.ignored} files that are no images ignored" if opened.ignored else ""
    print(f"{packed.samples:,} samples in {packed.shards:,} shards, {size(packed.bytes)}{order}{kept}{ignored}")
    if packed.bad:
        for one in packed.bad[:10]:
            print(f"left out: {one['name']}: {one['reason']}: {one['detail']}", file=sys.stderr)
        print(f"{plural(len(packed.bad), 'bad image')} left out; {out / BAD} lists them", file=sys.stderr)
        if not skip_bad:
            raise typer.Exit(EXIT_WRONG_INPUT)


@data_app.command("verify")
def data_verify(
    shards: Shards,
    classes: Annotated[int | None, typer.Option(help="Number of classes: labels must lie below it.")] = None,
    label: Annotated[str, typer.Option(help="As data.label: a member, or json:path.to.field.")] = "cls",
    class_map: Annotated[str | None, typer.Option(help="As data.class_map: labels are names.")] = None,
    multi_label: Annotated[bool, typer.Option(help="As data.multi_label: a sample has any number of labels.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every fault there too.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
) -> None:
    """Check every header, image, label and sha256 of shards.  Exit code 0: clean; 2: faults found, each named."""
    import json

    from vitscale.data.progress import bar
    from vitscale.data.report import show_verdict
    from vitscale.data.verify import verify
    from vitscale.errors import EXIT_WRONG_INPUT
    from vitscale.plan.hardware import usable_cores

    with bar("verifying", "bytes") as show:
        verdict = verify(shards, label=label, class_map=class_map, classes=classes, multi_label=multi_label,
                         workers=workers or usable_cores(), on_progress=show)
    show_verdict(verdict)
    if json_file:
        json_file.write_text(json.dumps(verdict.as_json(), indent=1))
    if verdict.faults:
        raise typer.Exit(EXIT_WRONG_INPUT)


@data_app.command("stats")
def data_stats(
    shards: Shards,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE.png", help="A picture of samples as the model sees them.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Whose crop, flip and augmentation it shows; default: plain, 224 pixels.")] = None,
    label: Annotated[str | None, typer.Option(help="As data.label: a member, or json:path.to.field; default: the recipe's or cls")] = None,
    class_map: Annotated[str | None, typer.Option(help="As data.class_map: labels are names; default: the recipe's.")] = None,
    multi_label: Annotated[bool | None, typer.Option(help="As data.multi_label: any number of labels; default: the recipe's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there too.")] = None,
    index_dir: Annotated[str | None, typer.Option(help="Where the index goes; default: beside the shards.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core.")] = None,
) -> None:
    """Classes, sizes, formats and copies of the images in shards, and a contact sheet."""
    import json

    from vitscale.data.index import open_index
    from vitscale.data.progress import bar
    from vitscale.data.report import show_stats
    from vitscale.data.stats import stats
    from vitscale.plan.hardware import usable_cores
    from vitscale.recipe import load_recipe

    read = load_recipe(recipe) if recipe else None
    label = label or (read.data.label if read else None) or "cls"
    class_map = class_map or (read.data.class_map if read else None)
    multi_label = multi_label if multi_label is not None else bool(read and read.data.multi_label)
    index = open_index(tuple(shards), index_dir)
    with bar("reading", "shards") as show:
        counted = stats(index, label=label, class_map=class_map, multi_label=multi_label, workers=workers or usable_cores(),
                        on_progress=show)
    show_stats(counted)
    if json_file:
        json_file.write_text(json.dumps(counted.as_json(), indent=1))
    if sheet:
        from vitscale.data.sheet import write_sheet

        write_sheet(sheet, index, read, label, class_map, multi_label)
        print(f"wrote {sheet}")


@data_app.command("index")
def data_index(
    shards: Shards,
    index_dir: Annotated[str | None, typer.Option(help="Where the index goes; default: beside the shards.")] = None,
) -> None:
    """Index shards: what `train` does by itself at its first use of them."""
    from vitscale.data.index import open_index
    from vitscale.data.progress import bar

    with bar("indexing", "shards") as show:
        index = open_index(tuple(shards), index_dir, show)
    print(f"{index.num_samples:,} samples in {len(index.counts):,} shards; index hash {index.hash}")
    if index.damaged:
        print(f"{index.damaged} places are damaged, {index.lost} samples lost to them; `vitscale data verify` names them", file=sys.stderr)


@job_app.command("begin")
def job_begin(recipe: RecipeArgument, overrides: Overrides = None,
              accept_changes: Annotated[bool, typer.Option("--accept-changes", help="For train; without effect here.")] = False) -> None:
    """Before the ranks start: checks the recipe, notes the job in the run folder, and prints that folder."""
    from vitscale.cluster.attempt import begin

    print(begin(recipe, overrides or []))


@job_app.command("coordinates")
def job_coordinates(out: Path, recipes: list[str]) -> None:
    """The coordinate check of muP over the widths of some recipes; writes OUT; exit code 3 if it does not pass."""
    from vitscale.errors import EXIT_FAILED
    from vitscale.recipe import load_recipe
    from vitscale.scaling.files import write_json
    from vitscale.train.coordinates import coordinate_check

    told = coordinate_check([load_recipe(file) for file in recipes])
    write_json(out, told)
    print(told["verdict"])
    if not told["passed"]:
        raise typer.Exit(EXIT_FAILED)


@job_app.command("nursery")
def job_nursery() -> None:
    """Runs of a sweep, asked for on stdin, as forks of this process."""
    from vitscale.train.nursery import serve

    serve()


@job_app.command("end")
def job_end(folder: Path, code: int) -> None:
    """After the ranks have ended with CODE: the exit code says how to go on, the output which nodes to leave out."""
    from vitscale.cluster.attempt import verdict

    found = verdict(folder, code)
    print(",".join(found.exclude))
    raise typer.Exit(found.code)


if __name__ == "__main__":
    main()
