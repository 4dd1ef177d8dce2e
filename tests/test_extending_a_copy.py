"""The examples of an objective and of an optimizer in docs/extending.md, put into a copy of the package as the page says."""

import re
import shutil
from pathlib import Path

import pytest
from offering import DOCS
from running import Run, train

import vitscale

pytestmark = pytest.mark.slow       # whole runs of real processes
BLOCKS = re.compile(r"<!-- (new|into): (\S+)(?: before: ([^\n]+?))? -->\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with the changed copy, from which processes that start in it import; and the digits."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(Path(vitscale.__file__).parent, folder / "vitscale")
    blocks = BLOCKS.findall(DOCS.read_text(encoding="utf-8"))
    assert len({path for _, path, _, _ in blocks}) == 3 + 2      # what the page says it costs
    for kind, path, before, code in blocks:
        file = folder / path
        if kind == "new":
            assert not file.exists()
            file.write_text(code, encoding="utf-8")
        else:
            text, mark = file.read_text(encoding="utf-8"), "\n" + before.replace("\\n", "\n")
            assert text.count(mark) == 1, f"{path}: {mark!r}"
            file.write_text(text.replace(mark, f"\n{code}{mark[1:]}"), encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    return folder


def test_they_train_and_two_ranks_equal_one(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(grown))
    recipe = str(Path(vitscale.__file__).parents[1] / "recipes" / "quickstart.yaml")
    settings = ["objective={name: mirror}", "optim.name=nadam", "model.width=32", "model.heads=2", "model.mlp=64", "model.depth=2",
                "global_batch=64", "duration=30 steps", "optim.warmup=5 steps", "evaluate.every=null", "data.augment.flip=0"]
    train(grown, *settings, "name=one", "micro_batch=64", recipe=recipe)
    train(grown, *settings, "name=two", "parallel.engine=fsdp", "parallel.processes=2", "micro_batch=16", recipe=recipe)
    one, two = (Run(grown / "runs" / name) for name in ("one", "two"))
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    assert one.losses[30] < one.losses[1] - 0.02
    assert one.outcome["best"]["metric"] == "eval_loss"
