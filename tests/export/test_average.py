"""Averages of checkpoints: exactly the mean, greedily chosen, refused where models differ; what import brings in."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import Run
from test_export_folders import VIT, shaken

from vitscale.checkpoint.load import load
from vitscale.errors import CheckpointError
from vitscale.export.average import gather, greedy, judge_on, mean_of
from vitscale.export.bring import bring
from vitscale.export.folder import write_safetensors, write_timm, write_transformers
from vitscale.models import build_model
from vitscale.recipe import load_recipe
from vitscale.recipe.schema import Vit


def test_the_last_checkpoints_of_a_run_are_averaged(unbroken: Run, digits: Path) -> None:
    models = gather([str(unbroken.folder)], last=3)
    assert len({one.step for one in models}) == 3
    mean = mean_of(models)
    name = "blocks.1.mlp.fc1.weight"
    expected = torch.stack([one.model.get_parameter(name) for one in models]).mean(dim=0)
    torch.testing.assert_close(mean.model.get_parameter(name), expected, rtol=0, atol=1e-7)
    assert judge_on((str(digits / "val-*.tar"),), torch.device("cpu"))(mean) > 0.2


def test_a_greedy_soup_keeps_what_does_not_harm() -> None:
    first = shaken(Vit(**VIT))
    models = []
    for number, shift in enumerate((0.0, 0.2, 5.0)):
        model = build_model(first.section)
        model.load_state_dict(first.model.state_dict())
        with torch.no_grad():
            model.head.bias.fill_(shift)
        models.append(replace(first, model=model.requires_grad_(False), source=Path(str(number))))
    soup = list(greedy(models, lambda loaded: -abs(float(loaded.model.get_parameter("head.bias")[0]) - 0.1)))
    # 0.0 and 0.2 are both off by 0.1; their mean is not, and 5.0 would spoil it
    assert [(one.source.name, stays) for one, _, stays in soup] == [("0", True), ("1", True), ("2", False)]
    assert soup[1][1] == pytest.approx(0, abs=1e-6)


def test_different_models_have_no_mean(tmp_path: Path) -> None:
    for name, section in (("a", Vit(**VIT)), ("b", Vit(**VIT, qkv_bias=False)), ("c", Vit(**VIT))):
        names = ("x", "y", "z", "u", "v") if name == "c" else ("ant", "bee", "cat", "dog", "elk")
        write_safetensors(shaken(section, names), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"model\.qkv_bias differ"):
        gather([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(CheckpointError, match="named or ordered otherwise"):
        gather([str(tmp_path / "a"), str(tmp_path / "c")])
    with pytest.raises(CheckpointError, match="two checkpoints at least"):
        gather([str(tmp_path / "a")])


@pytest.mark.parametrize(("write", "says"), [
    (write_transformers, "held against transformers"), (write_timm, "NOT held against timm: timm is not installed here")])
def test_a_folder_is_brought_in_and_says_what_a_recipe_needs(write, says, tmp_path: Path) -> None:
    loaded = shaken(Vit(**VIT))
    write(loaded, tmp_path / "theirs")
    said = "\n".join(bring(tmp_path / "theirs", tmp_path / "ours"))
    assert says in said
    back = load(tmp_path / "ours")
    assert torch.equal(back.model.get_parameter("head.weight"), loaded.model.get_parameter("head.weight"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(said.partition("for a recipe:\n")[2] + "\nname: r\ndata: {train: 'x-{0..1}.tar'}\noptim: {lr: 1.0}\n"
                      "global_batch: 8\nduration: 1 steps\n")
    assert load_recipe(recipe).model == back.section


@pytest.mark.parametrize(("library", "made", "module"), [
    (write_transformers, "transformers", "def __getattr__(name): raise ModuleNotFoundError('Could not import module')"),
    (write_timm, "timm", "import torchvision_of_another_torch"), (write_timm, "timm", "raise RuntimeError('operator torchvision::nms')")])
def test_a_library_that_does_not_work_is_told_from_one_that_is_absent(library, made: str, module: str, tmp_path: Path) -> None:
    """As timm and transformers are beside a torchvision of another torch: what was read or written is good, and not held against them."""
    loaded = shaken(Vit(**VIT))
    library(loaded, tmp_path / "theirs")
    (tmp_path / "broken" / made / "utils").mkdir(parents=True)
    (tmp_path / "broken" / made / "__init__.py").write_text(module)
    (tmp_path / "broken" / made / "utils" / "__init__.py").touch()
    (tmp_path / "broken" / made / "utils" / "logging.py").write_text("def disable_progress_bar(): pass")
    asked = "import sys; from vitscale.export.bring import bring; print(*bring(*map(__import__('pathlib').Path, sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", asked, str(tmp_path / "theirs"), str(tmp_path / "ours")], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "broken")})
    assert done.returncode == 0, done.stderr
    assert f"NOT held against {made}: {made} is here but does not work" in done.stdout
    assert f"torchvision was made for another torch: install the one for torch {torch.__version__}" in done.stdout
