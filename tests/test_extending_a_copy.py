"""The examples of docs/extending.md that change the package, put into a copy of it as the page says."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from offering import blocks_in, put
from running import Run, train

import vitscale

pytestmark = pytest.mark.slow       # whole runs of real processes
# what the page says it costs, in files
COSTS = {"Add an objective": 3, "Add an optimizer": 2, "Add a shard format": 2}
SMALL = ["objective={name: mirror}", "optim.name=nadam", "model.width=32", "model.heads=2", "model.mlp=64", "model.depth=2",
         "global_batch=64", "duration=30 steps", "optim.warmup=5 steps", "evaluate.every=null", "data.augment.flip=0", "data.lanes=16",
         "data.log_samples=true"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with the changed copy, from which processes that start in it import; and the digits, as tars and as zips."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(Path(vitscale.__file__).parent, folder / "vitscale")
    for title in COSTS:
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


@pytest.mark.parametrize("title", COSTS)
def test_what_each_costs(title: str) -> None:
    assert len({block.path for block in blocks_in(title)}) == COSTS[title]


def test_they_train_and_two_ranks_equal_one(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objective and the optimizer, on tars and on zips."""
    monkeypatch.setenv("PYTHONPATH", str(grown))
    recipe = str(Path(vitscale.__file__).parents[1] / "recipes" / "quickstart.yaml")
    train(grown, *SMALL, "name=one", "micro_batch=64", recipe=recipe)
    train(grown, *SMALL, "name=two", "parallel.engine=fsdp", "parallel.processes=2", "micro_batch=16", "data.prepare=null",
          "data.train=zips/train-*.zip", "data.val=zips/val-*.zip", recipe=recipe)
    one, two = (Run(grown / "runs" / name) for name in ("one", "two"))
    assert two.samples == one.samples
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    assert one.losses[30] < one.losses[1] - 0.02
    assert one.outcome["best"]["metric"] == "eval_loss"
    assert two.outcome["eval_loss"] == pytest.approx(one.outcome["eval_loss"], rel=1e-4)
