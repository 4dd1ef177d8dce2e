"""The examples of docs/extending.md that change the package, put into a copy of it as the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from offering import DOCS, blocks_in, files_in, put
from running import TIMEOUT_S, Run, command, same_as, start, train

import vitscale

pytestmark = pytest.mark.slow       # whole runs of real processes
TITLES = ("Add a backbone to vitscale itself", "Add an objective", "Add an optimizer", "Add a shard format", "Add an engine",
          "Add an axis of parallelism")
RECIPE = str(Path(vitscale.__file__).parents[1] / "recipes" / "quickstart.yaml")
SMALL = ["objective={name: mirror}", "optim.name=nadam", "model.width=32", "model.heads=2", "model.mlp=64", "model.depth=2",
         "global_batch=64", "duration=30 steps", "optim.warmup=5 steps", "evaluate.every=null", "data.augment.flip=0", "data.lanes=16",
         "data.log_samples=true", "model.pool=mean"]
ZIPS = ["data.prepare=null", "data.train=zips/train-*.zip", "data.val=zips/val-*.zip"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with the changed copy, from which processes that start in it import; and the digits, as tars and as zips."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(Path(vitscale.__file__).parent, folder / "vitscale")
    module = files_in(DOCS.read_text(encoding="utf-8"))["convmixer.py"]
    (folder / "vitscale" / "models" / "convmixer.py").write_text(module, encoding="utf-8")
    for title in TITLES:
        for block in blocks_in(title):
            put(block, folder)
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    (folder / "zips").mkdir()
    for shard in digits.glob("*.tar"):
        with tarfile.open(shard) as tar, zipfile.ZipFile(folder / "zips" / f"{shard.stem}.zip", "w") as archive:
            for member in tar:
                archive.writestr(member.name, tar.extractfile(member).read())       # type: ignore[union-attr]
    return folder


@pytest.mark.parametrize("title", TITLES)
def test_each_costs_what_the_page_says(title: str) -> None:
    said = re.search(rf"\(#{title.lower().replace(' ', '-')}\) \| (\d) \|", DOCS.read_text(encoding="utf-8"))
    assert said is not None
    assert len({block.path for block in blocks_in(title)}) == int(said[1])


@pytest.fixture(scope="module")
def one(grown: Path) -> Iterator[Run]:
    """The objective and the optimizer, by one process of ddp, on tars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(grown))
        train(grown, *SMALL, "name=one", "micro_batch=64", recipe=RECIPE)
        yield Run(grown / "runs" / "one")


def by(engine: str, ranks: int = 2) -> list[str]:
    return [f"parallel.processes={ranks}", "micro_batch=16", *(f"parallel.{one}" for one in engine.split())]


@pytest.mark.parametrize("first", [
    pytest.param((2, "engine=allreduce"), id="allreduce"), pytest.param((4, "engine=fsdp context=2"), id="fsdp-2x2", marks=pytest.mark.all),
    pytest.param((4, "engine=fsdp replicate=2 context=2"), id="fsdp-2x1x2", marks=pytest.mark.all)])
@pytest.mark.parametrize("then", [
    pytest.param((2, "engine=fsdp context=2"), id="fsdp-1x2"),
    pytest.param((2, "engine=allreduce"), id="allreduce", marks=pytest.mark.all)])
def test_all_of_them_together_give_the_steps_of_one_process(grown: Path, one: Run, first: tuple[int, str], then: tuple[int, str]) -> None:
    """The engine and the axis, on zips; one saves when it is told to stop, the other resumes."""
    name = f"two-{hash((first, then)) % 10**9}"
    run, process = Run(grown / "runs" / name), start(grown, *SMALL, *ZIPS, f"name={name}", *by(first[1], first[0]), recipe=RECIPE)
    try:
        run.wait_for_step(6, process)
        process.terminate()
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 75, output
    output = train(grown, *SMALL, *ZIPS, f"name={name}", *by(then[1], then[0]), recipe=RECIPE)
    assert "resuming from step-" in output
    same_as(one, run, last=30)
    assert run.outcome["attempt"] == 2
    assert abs(one.losses[30] - one.losses[1]) > 0.02       # it moved, so the agreement means something
    assert one.outcome["best"]["metric"] == "eval_loss"
    assert run.outcome["eval_loss"] == pytest.approx(one.outcome["eval_loss"], rel=1e-4)


def test_the_planner_says_what_it_does_not_know_of_them(grown: Path) -> None:
    def plan(*settings: str) -> dict[str, Any]:
        done = subprocess.run(command("plan", RECIPE, *SMALL, *settings, "--on", "4xH100", "--json"), cwd=grown, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(grown)}, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole, tokens, by_hand = (plan(*(f"parallel.{one}" for one in engine.split()))
                              for engine in ("engine=ddp", "engine=fsdp context=2", "engine=allreduce"))
    assert (by_hand["memory"], by_hand["time"]) == (whole["memory"], whole["time"])
    assert tokens["time"]["step_seconds"] is None
    assert tokens["unknown"][0].startswith("parallel.context: no formula says what is exchanged along it")
    assert tokens["batch"]["per_gpu"] == 2 * whole["batch"]["per_gpu"]


# What is asked of the copy about its backbone: parameters and FLOPs by formula and as they are.
ASKED = """
import json, torch
from torch.utils.flop_counter import FlopCounterMode
from vitscale.models import build_model
from vitscale.plan.families import anatomy_of
from vitscale.recipe.load import check_section
from vitscale.recipe.schema import FAMILIES
told = []
for more in ({}, {"depth": 3, "kernel": 5, "patch": 4, "classes": 0}, {"channels": 1, "image": 8, "classes": 7}):
    section = check_section(FAMILIES["convmixer"], {"family": "convmixer", "width": 24, "image": 16} | more, "asked")
    parts = anatomy_of(section)
    with torch.device("meta"):
        model = build_model(section)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, section.channels, section.image, section.image))
    told.append([sum(parts.params.values()), sum(one.numel() for one in model.parameters()),
                 sum(parts.flops.values()), counter.get_total_flops()])
print(json.dumps(told))
"""
MIXED = ["model={family: convmixer, image: 8, channels: 1, classes: 10, width: 32, drop_path: 0.1}", "duration=10 steps",
         "evaluate.every=null", "optim.warmup=5 steps", "global_batch=64"]


def test_the_backbone_is_counted_exactly(grown: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(grown)}
    done = subprocess.run([sys.executable, "-c", ASKED], cwd=grown, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    for counted, built, flops, seen in json.loads(done.stdout):
        assert (counted, flops) == (built, seen)


def test_the_backbone_trains_with_a_micro_batch_and_an_mfu_of_the_planner(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(grown))
    train(grown, *MIXED, "name=mixed", recipe=RECIPE)
    run = Run(grown / "runs" / "mixed")
    assert run.losses[10] < run.losses[1]
    assert all(row["mfu"] > 0 for row in run.rows() if "loss" in row)
    told = subprocess.run(command("export", "runs/mixed", "--format", "timm", "--out", "t"), cwd=grown, capture_output=True, text=True,
                          timeout=TIMEOUT_S)
    assert told.returncode == 2
    assert "convmixer has no expression there" in told.stderr
