"""`vitscale bench` by command, in its smallest forms: figures that hang together, a file for the planner, one clear error otherwise."""

import json
import os
import subprocess
import sys

import pytest

from vitscale.bench import startup
from vitscale.bench.figures import number, spread
from vitscale.bench.loader import measure_loader
from vitscale.data import open_index
from vitscale.data.quickstart import pack_digits
from vitscale.plan.flops import training_flops_per_image
from vitscale.plan.measured import read_measured
from vitscale.plan.params import count_params
from vitscale.recipe import load_recipe

TINY = ["model.width=32", "model.depth=2", "model.heads=2", "model.mlp=64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench")
    pack_digits(place / "data" / "digits")
    return place


def bench(folder, *words, code=0):
    done = subprocess.run([sys.executable, "-m", "vitscale", "bench", *words], cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def figures(told):
    return {one["name"]: one for one in json.loads(told)["figures"]}


@pytest.mark.slow       # two processes that import torch
@pytest.mark.parametrize("ranks", [1, 2])
def test_step(folder, ranks):
    told = bench(folder, "step", "quickstart", *TINY, "micro_batch=4", "--steps", "3", "--warm-up", "1", "--micro-steps", "2", "--ranks",
                 str(ranks), "--save", f"saved/{ranks}.json", "--json")
    found, saved = figures(told), json.loads((folder / "saved" / f"{ranks}.json").read_text())
    speed = found["speed"]["value"]
    assert speed == pytest.approx(8 * ranks / found["step"]["value"])
    recipe = load_recipe("quickstart", TINY)
    flops = training_flops_per_image(recipe.model, recipe.objective)
    assert saved["mfu"] == pytest.approx(saved["images_per_second"] * flops / ranks / saved["measured_peak_flops"])
    assert set(saved) >= {"recipe", "device", "images_per_second", "mfu", "micro_batch", "engine", "precision", "recompute", "compile",
                          "peak_bytes", "versions", "date"}
    assert (saved["micro_batch"], saved["ranks"], saved["engine"], saved["recipe"]) == (4, ranks, "ddp", "quickstart")
    read = read_measured(folder / "saved" / f"{ranks}.json")           # as `vitscale plan --measured` does
    assert (read.images_per_second, read.micro_batch, read.peak_bytes) == (saved["images_per_second"], 4, saved["peak_bytes"])
    assert "data sheet" not in told             # there is none for a CPU
    phases = [found[f"of it {name}"] for name in ("h2d", "compute", "optimizer", "communication")]
    assert sum(phase["low"] for phase in phases) <= found["step"]["high"]        # true of every step's own phases, whatever else runs
    assert sum(phase["high"] for phase in phases) > 0.5 * found["step"]["low"]


@pytest.mark.slow       # a process that imports torch
def test_step_of_another_objective_prints_a_table(folder):
    told = bench(folder, "step", "mae_l16_in1k", *TINY, "model.image=32", "objective.decoder.width=16", "objective.decoder.depth=1",
                 "objective.decoder.heads=2",
                 "micro_batch=2", "parallel.engine=ddp", "parallel.precision=fp32", "parallel.recompute=none", "parallel.compile=false",
                 "--steps", "1", "--warm-up", "0")
    assert "A training step of" in told
    assert "images/s" in told


@pytest.mark.slow       # a process that imports torch
def test_data(folder):
    found = figures(bench(folder, "data", "quickstart", "--seconds", "0", "--json"))
    assert found["images/s"]["value"] > 0
    assert found["per CPU-second"]["value"] > 0


def test_loader_measures_what_it_says(folder):
    recipe = load_recipe("quickstart", ["global_batch=32", "data.lanes=16"])
    index = open_index(f"{folder}/data/digits/train-*.tar")
    found, facts = measure_loader(recipe, index, seconds=0.3)
    assert facts["batches"] >= 3
    assert facts["unusable"] == 0
    assert facts["samples"] == index.num_samples
    assert found[1].low <= found[1].value <= found[1].high


@pytest.mark.slow       # two ranks
def test_comm(folder):
    found = figures(bench(folder, "comm", "--largest", "300000", "--json"))
    assert set(found) == {f"{kind} of {size} KiB" for kind in ("all-reduce", "all-gather") for size in (4, 256)}
    assert all(0 < one["low"] <= one["value"] <= one["high"] for one in found.values())
    assert "at least two ranks" in bench(folder, "comm", "--ranks", "1", code=2)


@pytest.mark.slow       # a process that imports torch and writes checkpoints
def test_checkpoint(folder):
    told = bench(folder, "checkpoint", "quickstart", *TINY, "--repeats", "1", "--json")
    found = figures(told)
    assert 0 < found["training stands still"]["value"] < 60
    recipe = load_recipe("quickstart", TINY)
    assert json.loads(told)["bytes"] >= 3 * 4 * count_params(recipe.model, recipe.objective)        # weights and two moments
    assert not list(folder.glob(".vitscale-bench-*"))


@pytest.mark.slow       # a whole run of three steps
def test_startup(monkeypatch):
    monkeypatch.setattr(startup, "_IMPORTS", ("vitscale.recipe",))
    monkeypatch.setattr(startup, "_slowest_imports", lambda module, real=startup._slowest_imports: real("vitscale.recipe"))
    found, _ = startup.measure_startup(1, shown=3)
    by_name = {one.name: one.value for one in found}
    assert by_name["Python alone"] < by_name["import vitscale.recipe"]
    whole = [value for name, value in by_name.items() if "train quickstart" in name]
    assert whole[0] > by_name["Python alone"]
    assert sum("itself" in name for name in by_name) == 3


def test_figures():
    one = spread("x", [3.0, 1.0, 2.0], "s")
    assert (one.value, one.low, one.high) == (2.0, 1.0, 3.0)
    assert (number(12345.6), number(0.01234)) == ("12,346", "0.0123")


def test_a_mistake_is_one_line(folder):
    assert bench(folder, "step", "no-such-recipe", code=2).count("\n") <= 3
