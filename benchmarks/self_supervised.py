"""Measures whether pretraining without labels learns: DINO, iBOT, LeJEPA, MAE on CIFAR-10 at equal compute, by k-NN.  Writes a row.

    python benchmarks/self_supervised.py --train 'cifar10/train/*.tar' --val 'cifar10/test/*.tar'      then      python benchmarks/report.py

Shards as `vitscale data pack` makes of a folder of classes, mixed, with numbers as classes, which are read for the judgement alone.  Real
runs of the real command, one after the other, with the recipes OBJECTIVE_cifar10.yaml.  What is finished is kept in --work and never done
twice: a benchmark that was killed goes on where it stood, also in the middle of a run.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data import describe
from measure import HERE, figure, write_row
from torch import Tensor, nn

from vitscale.checkpoint.load import Loaded, load
from vitscale.checkpoint.store import checkpoints_in, step_of
from vitscale.data import SetIndex, open_index
from vitscale.data.labels import LabelRule
from vitscale.data.transform import Transform
from vitscale.evaluate.neighbours import knn
from vitscale.evaluate.outputs import outputs
from vitscale.files import write_atomically
from vitscale.models import build_model, initialise
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.plan.flops import training_flops_per_image
from vitscale.recipe import Parallel, Recipe
from vitscale.recipe.load import load_recipe

OBJECTIVES = ("dino", "ibot", "lejepa", "mae")
JUDGED = ("dino", "ibot", "lejepa")     # against what learns nothing, and against MAE
RAW, NORMALISED, UNTRAINED = "raw pixels", "pixels, normalised", "an untrained network"
NEIGHBOURS = 20
RATE = 40e9             # FLOP/s of a minute of --minutes: about what a core gives, and the same compute on every machine
WARMUP = 0.1            # of the images of a run
POINTS = 6              # of a curve: checkpoints at equal distances


@dataclass(frozen=True)
class Bench:
    """What every run is made and judged with."""

    given: argparse.Namespace
    train: SetIndex
    val: SetIndex

    def recipe(self, objective: str) -> str:
        return str(self.given.recipes / f"{objective}_cifar10.yaml")

    @property
    def data(self) -> list[str]:
        """Overrides that name the data."""
        return [f"data.train={json.dumps(self.train.paths)}", "data.val=null", f"data.num_samples={self.train.num_samples}",
                f"data.index_dir={self.given.work.absolute() / 'index'}"]

    def images(self, objective: str) -> int:
        """How many images the compute of a run is enough for."""
        recipe = load_recipe(self.recipe(objective))
        each = training_flops_per_image(recipe.model, recipe.objective, recipe.data.views)
        return max(round(self.given.minutes * 60 * RATE / each), recipe.global_batch)

    def finished(self, name: str, told_by: Sequence[str]) -> "Finished":
        """Where the result of something lies; what it depends on is part of the place."""
        about = [self.train.hash, self.val.hash, str(self.given.bank), *told_by]
        key = hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
        return Finished(self.given.work / "finished" / f"{name}-{key}.json", f"{name}-{key}")


@dataclass(frozen=True)
class Finished:
    """One result that is made once: a row of its own, there or not."""

    path: Path
    run: str

    def read(self) -> dict[str, Any] | None:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else None

    def write(self, result: dict[str, Any]) -> dict[str, Any]:
        result = {**result, "date": time.strftime("%Y-%m-%d", time.gmtime())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(result, indent=1).encode())
        print(f"{self.run}: {100 * result['knn']:.2f} %", file=sys.stderr)
        return result


class Pixels(nn.Module):
    """In a network's place: an image's features are its pixels."""

    def forward_features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: images.flatten(1) for name in names}


def trained(bench: Bench, objective: str, seed: int) -> dict[str, Any]:
    """The k-NN of one run at its end, and along its way."""
    images, recipe = bench.images(objective), load_recipe(bench.recipe(objective))
    steps = max(images // recipe.global_batch, 1)
    overrides = [f"duration={images} images", f"optim.warmup={round(WARMUP * images)} images", f"seed={seed}",
                 f"checkpoint.every={max(steps // POINTS, 1)} steps", "checkpoint.keep=1000"]
    at = bench.finished(f"{objective}-{seed}", [Path(bench.recipe(objective)).read_text(encoding="utf-8"), *overrides])
    if (known := at.read()) is not None:
        return known
    began = time.monotonic()
    folder = run(bench, objective, at.run, *overrides)
    took = time.monotonic() - began
    last = step_of(checkpoints_in(folder / "checkpoints")[-1])
    curve = [(min(step_of(one) * recipe.global_batch, images), judged(bench, load(one), quick=True))
             for one in checkpoints_in(folder / "checkpoints")]
    return at.write({"knn": judged(bench, load(folder)), "images": images, "steps": last, "seconds_of_this_start": round(took),
                     "curve": curve})


def untrained(bench: Bench, recipe: Recipe, seed: int) -> dict[str, Any]:
    """The same network at its first weights."""
    at = bench.finished(f"untrained-{seed}", [recipe.model.model_dump_json()])
    section = recipe.model.model_copy(update={"classes": 0})
    model = build_model(section)
    initialise(model, seed)
    return at.read() or at.write({"knn": judged(bench, _as_loaded(recipe, model.eval()))})


def pixels(bench: Bench, recipe: Recipe, name: str) -> dict[str, Any]:
    """Pixels in 0..1, or normalised as the network sees them: cosines of these tell much more, since no brightness is common to all."""
    loaded = _as_loaded(recipe, Pixels())
    if name == RAW:
        loaded = replace(loaded, transform=replace(loaded.transform, mean=(0.0,) * 3, std=(1.0,) * 3))
    at = bench.finished(name.replace(", ", "-").replace(" ", "-"), [str(loaded.transform)])
    return at.read() or at.write({"knn": judged(bench, loaded)})


def _as_loaded(recipe: Recipe, model: nn.Module) -> Loaded:
    return Loaded(model, Transform.of(recipe), (), recipe.model, recipe, Path())        # type: ignore[arg-type]


def run(bench: Bench, objective: str, name: str, *overrides: str) -> Path:
    """A run of that name, made or taken up where it was left; -> its folder."""
    command = [sys.executable, "-m", "vitscale", "train", bench.recipe(objective), f"name={name}", f"runs_dir={bench.given.work / 'runs'}",
               *bench.data, "evaluate.every=null", "evaluate.features=[]", "checkpoint.best=null", "observe.exporter=false", *overrides]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    folder: Path = bench.given.work / "runs" / name
    return folder


def judged(bench: Bench, loaded: Loaded, quick: bool = False) -> float:
    """The share of test images whose class the nearest training images vote for.  quick: by a tenth of both, for curves."""
    rule, sides = LabelRule.of("cls", None), []
    with joined(Parallel(), RankInfo()) as world:
        for index, count in ((bench.train, bench.given.bank), (bench.val, None)):
            paths = index.paths[:count]
            if quick:
                paths = paths[:max(len(paths) // 10, 1)]
            part = open_index(paths, str(bench.given.work / "index"))
            found = outputs(loaded, part, world, label=rule, classes=1000, batch=250, logits=False, layer="pooled")
            assert found is not None
            assert found.features is not None
            sides.append((found.features, found.labels))
    return float(knn(*sides[0], *sides[1], k=NEIGHBOURS)["top1"]["value"])


def figures_of(found: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Of each thing its k-NN; of what is to learn how far it is above each that is not, seed by seed."""
    shares = {name: [100 * one["knn"] for one in results] for name, results in found.items()}
    for name, values in shares.items():
        yield figure(f"{name}: {NEIGHBOURS}-NN", values, "%")
    for name in JUDGED:
        for other in (RAW, NORMALISED, UNTRAINED, "mae"):
            if name not in shares or other not in shares:
                continue
            theirs = shares[other] * (len(shares[name]) if len(shares[other]) == 1 else 1)
            above = [mine - its for mine, its in zip(shares[name], theirs, strict=True)]
            yield figure(f"{name}: above {other}, seed by seed", above, "points") | {"goal": "> 0 on every seed", "met": min(above) > 0}


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Curves: a line for each seed, over the compute of a run."""
    import matplotlib

    from vitscale.scaling.figures import LINE_COLOURS, SOFT, STYLE, new_figure

    with matplotlib.rc_context(STYLE):
        drawing, (axes,) = new_figure(4.2, 2.8)
        for colour, name in zip(LINE_COLOURS, (name for name in found if name in OBJECTIVES), strict=False):
            for number, one in enumerate(found[name]):
                at = [100 * images / one["images"] for images, _ in one["curve"]]
                axes.plot(at, [100 * value for _, value in one["curve"]], color=colour, label=None if number else name)
        axes.set(xlabel="compute, % of a run", ylabel=f"{NEIGHBOURS}-NN by a tenth of the images, %")
        axes.grid(axis="y", color=SOFT, alpha=0.2)
        axes.legend()
        drawing.savefig(path, metadata={"Software": None})


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """One benchmark at a time in a folder."""
    from filelock import FileLock

    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "lock", timeout=0):
        yield


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="brace URL or glob of the training shards")
    parser.add_argument("--val", required=True, help="the same of the shards of the test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--minutes", type=float, default=60, help=f"compute of each run, in minutes of {RATE / 1e9:g} GFLOP/s")
    parser.add_argument("--bank", type=int, help="training shards whose images vote; default: all")
    parser.add_argument("--recipes", type=Path, default=HERE.parent / "recipes", help="folder of OBJECTIVE_cifar10.yaml")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "self-supervised", help="where runs and results are kept")
    parser.add_argument("--curves", type=Path, help="a .png to draw them into")
    parser.add_argument("--rows", type=Path, default=HERE / "rows")
    given = parser.parse_args(arguments)
    with alone(given.work):
        train, val = (open_index(urls, str(given.work / "index")) for urls in (given.train, given.val))
        bench, found = Bench(given, train, val), dict[str, list[dict[str, Any]]]()
        first = load_recipe(bench.recipe(given.objectives[0]))
        found |= {name: [pixels(bench, first, name)] for name in (RAW, NORMALISED)}
        found[UNTRAINED] = [untrained(bench, first, seed) for seed in given.seeds]
        found |= {name: [] for name in given.objectives}
        for seed in given.seeds:        # a whole comparison first, then the next
            for name in given.objectives:
                found[name].append(trained(bench, name, seed))
    if given.curves is not None:
        draw(found, given.curves)
    model, flops = first.model, given.minutes * 60 * RATE
    write_row(
        given.rows, "self-supervised",
        f"Features learned without labels, {flops:.3g} FLOP for each run, seeds {', '.join(map(str, given.seeds))}: "
        f"{NEIGHBOURS}-NN of {val.num_samples:,} test images", list(figures_of(found)),
        command=f"python benchmarks/self_supervised.py --train TRAIN --val VAL --seeds {' '.join(map(str, given.seeds))} "
                f"--minutes {given.minutes:g} --objectives {' '.join(given.objectives)}" + (f" --bank {given.bank}" if given.bank else ""),
        rounds=len(given.seeds), shards=describe(train),
        versions={"python": platform.python_version()} | {name: version(name) for name in ("torch", "vitscale")},
        notes=[f"patches of {model.patch} pixels of {model.image}; " + ", ".join(  # type: ignore[union-attr]
            f"{name} {bench.images(name):,} images" for name in given.objectives)],
        curves={name: [one["curve"] for one in found[name]] for name in given.objectives})


if __name__ == "__main__":
    main()
