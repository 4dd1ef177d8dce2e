"""The example of a backbone in docs/extending.md, taken out of the page and used as it says there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from offering import DOCS, files_in
from running import Run, command, kill_rank, same_as, start, train

pytestmark = pytest.mark.slow       # whole runs of real processes
METADATA = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
SETTINGS = ["duration=60 steps", "checkpoint.every=8 steps", "data.log_samples=true", "data.lanes=16"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Path]:
    """A folder with the recipe and the digits, and the package installed elsewhere: with metadata as pip makes it of pyproject.toml."""
    package, folder = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("extending")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    for name, content in files_in(DOCS.read_text(encoding="utf-8")).items():
        ((folder if name.endswith(".yaml") else package) / name).write_text(content, encoding="utf-8")
    subprocess.run([sys.executable, "-c", METADATA], cwd=package, check=True, capture_output=True)
    shutil.rmtree(package / "convmixer_vitscale.egg-info")      # says the same, in an older form
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        yield folder


@pytest.fixture(scope="module")
def one(workplace: Path) -> Run:
    """Of one process, never interrupted."""
    train(workplace, *SETTINGS, "name=one", "parallel.engine=ddp", "parallel.processes=1", recipe="mixed.yaml")
    return Run(workplace / "runs" / "one")


def test_the_backbone_of_the_docs_trains_is_killed_resumes_and_is_evaluated(workplace: Path) -> None:
    run = Run(workplace / "runs" / "mixed")
    process = start(workplace, *SETTINGS, recipe="mixed.yaml")
    try:
        run.wait_for_step(19, process)
        kill_rank(process, 1)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, output
    about = Path(os.environ["PYTHONPATH"]) / "convmixer_vitscale-0.1.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("Version: 0.1", "Version: 0.2"))
    output = train(workplace, *SETTINGS, recipe="mixed.yaml")
    assert "resuming from step-" in output
    assert "was written with convmixer-vitscale 0.1, and 0.2 is installed now" in " ".join(output.split())
    assert "MFU" not in output
    assert (run.outcome["state"], run.outcome["attempt"], len(run.losses)) == ("done", 2, 60)
    assert all(row["mfu"] is None for row in run.rows() if "loss" in row)
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["flops_per_image"] is None
    assert environment["parameters"] == 5002
    assert environment["versions"]["convmixer-vitscale"] == "0.2"
    assert "convmixer" in (run.folder / "README.md").read_text()

    told = subprocess.run(command("eval", "runs/mixed"), cwd=workplace, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert f"{run.outcome['eval_top1']:.2%}" in told.stdout

    nowhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(command("eval", "runs/mixed"), cwd=workplace, capture_output=True, text=True, timeout=120, env=nowhere)
    assert told.returncode == 2
    assert "its backbone convmixer is another package's (convmixer-vitscale 0.2)" in told.stderr


@pytest.mark.all
@pytest.mark.parametrize(("engine", "processes"), [("ddp", 1), ("ddp", 3), ("fsdp", 2), ("zero", 2), ("accelerate", 2)])
def test_it_is_exact_as_others_are(workplace: Path, one: Run, engine: str, processes: int) -> None:
    """Losses of one process on every engine, over a kill."""
    name = f"{engine}-{processes}"
    run = Run(workplace / "runs" / name)
    arguments = [*SETTINGS, f"name={name}", f"parallel.engine={engine}", f"parallel.processes={processes}"]
    process = start(workplace, *arguments, recipe="mixed.yaml")
    try:
        run.wait_for_step(19, process)
        if processes > 1:
            kill_rank(process, 0)
        else:
            process.kill()
        process.communicate(timeout=60)
    finally:
        process.kill()
    train(workplace, *arguments, "parallel.recompute=blocks", recipe="mixed.yaml")
    same_as(one, run)


@pytest.mark.all
@pytest.mark.parametrize("arguments", [
    ["compare", "runs/one", "runs/one", "--figure", "c.png"], ["export", "runs/one", "--format", "safetensors", "--out", "e"],
    ["export", "runs/one", "--format", "onnx", "--out", "o"], ["explain", "runs/one", "data/digits/val-000000.tar", "--out", "x"],
    ["embed", "data/digits/val-000000.tar", "--model", "runs/one", "--out", "f.npz"], ["bench", "step", "mixed.yaml"],
    ["predict", "data/digits/val-000000.tar", "--model", "runs/one"], ["doctor", "mixed.yaml", "name=new", "parallel.processes=1"],
    ["export", "runs/one", "--format", "timm", "--out", "t"], ["export", "runs/one", "--format", "transformers", "--out", "h"],
    ["plan", "mixed.yaml", "--on", "8xH100"], ["recipes", "check", "mixed.yaml"], ["submit", "mixed.yaml", "name=new", "--dry-run"],
], ids=lambda arguments: "-".join(arguments[:1] + [one for one in arguments if one in ("onnx", "timm", "transformers", "safetensors")]))
def test_every_command_works_or_says_why_not(workplace: Path, one: Run, arguments: list[str]) -> None:
    told = subprocess.run(command(*arguments), cwd=workplace, capture_output=True, text=True, timeout=180)
    if {"timm", "transformers"} & set(arguments) or arguments[0] == "plan":
        assert told.returncode == 2
        assert told.stderr.startswith("vitscale: ")
        assert "convmixer" in told.stderr
    else:
        assert told.returncode == 0, told.stderr
    assert "Traceback" not in told.stderr
