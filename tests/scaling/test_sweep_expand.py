"""A sweep recipe to ordinary runs: modes, budgets, pruning, hold-out, trunks and branches, muP; and every mistake by its key."""

from pathlib import Path
from typing import Any

import pytest

from vitscale.errors import RecipeError
from vitscale.plan.flops import training_flops_per_image
from vitscale.recipe import RECIPES, load_recipe
from vitscale.recipe.text import write_yaml
from vitscale.scaling.expand import SweepPlan, expand
from vitscale.scaling.shapes import family, shapes, sovit
from vitscale.scaling.sweep import Explicit, Sizes, load_sweep

WIDTHS = {"rule": "aspect", "widths": [8, 16, 32], "width_per_layer": 16, "head_width": 8, "mlp_ratio": 2}
BASE: dict[str, Any] = {
    "name": "made",
    "base": "quickstart",
    "mode": "isoflop",
    "sizes": WIDTHS,
    "budgets": [1e9, 4e9],
    "epochs": [0.1, 1000],
    "set": {"global_batch": 16, "optim.warmup": "1 steps"},
}

MODELS: dict[str, Any] = {
    "vit": {"width": 16, "depth": 1, "heads": 2, "mlp": 32, "patch": 2},
    "swin": {"family": "swin", "width": 8, "depths": [1, 1], "heads": [1, 2], "window": 2, "patch": 2},
    "convnext": {"family": "convnext", "widths": [8, 16], "depths": [1, 1]},
}


def made(folder: Path, **changes: Any) -> SweepPlan:
    values = {key: value for key, value in (BASE | changes).items() if value is not None}
    path = folder / "sweep.yaml"
    path.write_text(write_yaml(values))
    sweep, source = load_sweep(str(path))
    return expand(sweep, source, folder / "out")


def test_isoflop_spends_each_budget_on_every_size(tmp_path: Path) -> None:
    plan = made(tmp_path)
    assert len(plan.runs) == 6
    for run in plan.runs:
        assert run.c == run.d * training_flops_per_image(run.recipe.model)
        assert run.budget is not None
        assert run.c == pytest.approx(run.budget, rel=0.15)  # whole batches
        assert run.recipe.duration.images(1438, 16) == run.d
        assert run.recipe.runs_dir == str(tmp_path / "out" / "runs")
        assert run.d % 16 == 0
    assert len({run.name for run in plan.runs}) == 6


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    plan = made(tmp_path, mode="grid", budgets=None, axes={"samples": [1600, 3200], "lr": [1e-3, 2e-3], "batch": [16, 32]}, seeds=[0, 1])
    assert len(plan.runs) == 3 * 2 * 2 * 2 * 2
    assert {(run.lr, run.batch, run.seed) for run in plan.runs} == {(lr, b, s) for lr in (1e-3, 2e-3) for b in (16, 32) for s in (0, 1)}


def test_a_star_moves_one_thing_at_a_time(tmp_path: Path) -> None:
    plan = made(tmp_path, mode="star", budgets=None, axes={"samples": [1600, 3200, 6400], "lr": [1e-3, 2e-3, 4e-3]})
    assert len(plan.runs) == 1 + 2 + 2 + 2
    centre = (16, 3200, 2e-3)
    for run in plan.runs:
        assert sum(a != b for a, b in zip((run.shape.width, run.d, run.lr), centre, strict=True)) <= 1


def test_a_ladder_is_one_budget_for_each_size(tmp_path: Path) -> None:
    plan = made(tmp_path, mode="ladder", budgets=[1e9, 3e9, 9e9])
    assert [(run.shape.width, run.budget) for run in plan.runs] == [(8, 1e9), (16, 3e9), (32, 9e9)]


def test_patches_images_and_unique_shards(tmp_path: Path) -> None:
    plan = made(tmp_path, mode="grid", budgets=None, axes={"samples": [1600], "patch": [2, 4], "unique_shards": [2, 8]})
    assert {run.recipe.model.patch for run in plan.runs} == {2, 4}
    few = [run for run in plan.runs if run.recipe.data.num_samples is None]
    assert {run.u for run in few} == {360}
    assert few[0].recipe.data.train == ("data/digits/train-000000.tar", "data/digits/train-000001.tar")
    assert {run.u for run in plan.runs} == {360, 1438}


def test_the_largest_budgets_are_held_out(tmp_path: Path) -> None:
    plan = made(tmp_path, budgets=[1e9, 2e9, 4e9], hold_out=1)
    assert {run.budget for run in plan.held_out} == {4e9}
    assert {run.budget for run in plan.first} == {1e9, 2e9}


def test_what_can_tell_nothing_is_pruned_and_said(tmp_path: Path) -> None:
    plan = made(tmp_path, budgets=[1e7, 1e9, 1e12], epochs=[0.1, 100])
    reasons = " ".join(one["reason"] for one in plan.pruned)
    assert "it would see the data" in reasons
    assert all(0.1 <= run.d / 1438 <= 100 for run in plan.runs)


def test_runs_that_differ_in_length_share_a_trunk(tmp_path: Path) -> None:
    plan = made(tmp_path, mode="grid", budgets=None, axes={"samples": [1600, 3200, 6400]}, cooldown=0.2)
    trunks = [run for run in plan.runs if run.trunk is None]
    assert {run.d for run in trunks} == {6400}
    for run in plan.runs:
        assert run.recipe.optim.schedule == "wsd"
        if run.trunk is not None:
            trunk = next(one for one in trunks if one.name == run.trunk)
            assert trunk.recipe.checkpoint.every is not None
            assert run.branch_step == 0.8 * run.d / 16
            assert run.branch_step % trunk.recipe.checkpoint.every.amount == 0
            assert run.branch_step / trunk.recipe.checkpoint.every.amount <= trunk.recipe.checkpoint.keep


def test_mup_puts_the_smallest_width_into_every_run(tmp_path: Path) -> None:
    assert {run.recipe.model.mup_base_width for run in made(tmp_path, transfer="mup").runs} == {8}
    assert {run.recipe.model.mup_base_width for run in made(tmp_path).runs} == {None}


def test_architectures_spend_the_same_on_the_same_shards(tmp_path: Path) -> None:
    plan = made(tmp_path, sizes=None, models=MODELS, budgets=[2e9])
    assert [run.name.partition("-")[0] for run in plan.runs] == sorted(MODELS, key=[run.model for run in plan.runs].index)
    base = load_recipe("quickstart")
    for run in plan.runs:
        assert run.recipe.model.family == MODELS[run.model].get("family", "vit")
        assert (run.recipe.model.image, run.recipe.model.channels, run.recipe.model.classes) == (8, 1, 10)
        assert run.recipe.data == base.data
        assert run.c == pytest.approx(2e9, rel=0.15)
        assert run.c == run.d * training_flops_per_image(run.recipe.model)
    grid = made(tmp_path, sizes=None, models=MODELS, mode="grid", budgets=None, axes={"lr": [1e-3, 2e-3]}, seeds=[0, 1])
    assert len(grid.runs) == 3 * 2 * 2
    assert len({run.d for run in grid.runs}) == 1


def test_sovits_rule_goes_through_so400m() -> None:
    assert sovit(1.0, 72) == shapes(Sizes(rule="list", sizes=("so400m",)))[0]
    half = sovit(0.5, 72)
    assert half.width / 1152 == pytest.approx(0.5**0.22, rel=0.04)
    assert half.depth / 27 == pytest.approx(0.5**0.45, rel=0.04)
    assert shapes(Sizes(rule="list", sizes=("so400m",)))[0] in family(Sizes(rule="sovit", scales=(1.0,), head_width=72))


def test_what_is_recommended_is_of_the_rule() -> None:
    """Of a list the shapes it has, also those narrower than a usual head, and all of one width."""
    small = tuple(Explicit(width=width, depth=depth, heads=width // 4, mlp=2 * width) for width, depth in ((8, 2), (16, 2), (16, 4)))
    assert [(one.width, one.depth) for one in family(Sizes(rule="list", sizes=small))] == [(8, 2), (16, 2), (16, 4)]
    assert [one.width for one in family(Sizes(rule="aspect", widths=(64,), head_width=64))[:3]] == [64, 128, 192]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": WIDTHS | {"widths": [12]}}, r"sizes.widths\s+12 is no multiple of head_width 8"),
        ({"sizes": {"rule": "list"}}, r"sizes.sizes\s+is required by rule list"),
        ({"sizes": {"rule": "list", "sizes": ["collossal"]}}, "'collossal' is no size"),
        ({"budgets": None}, r"budgets\s+is required by mode isoflop"),
        ({"mode": "grid"}, r"budgets\s+mode grid has none"),
        ({"mode": "ladder"}, "a ladder wants one for each of the 3 sizes, got 2"),
        ({"axes": {"samples": [100]}}, "follow from the budgets"),
        ({"hold_out": 2}, "hold_out: 2 of 2 budgets leaves nothing to fit"),
        ({"modes": "grid"}, r"modes\s+is no key of a sweep.*did you mean mode"),
        ({"base": "quikstart"}, "did you mean quickstart"),
        ({"set": {"optim.learning_rate": 1}}, "optim.learning_rate  is no key of optim"),
        ({"set": {"data.num_samples": None}}, "declares no data.num_samples"),
        ({"epochs": [500, 1000]}, "no run is left"),
        ({"axes": {"unique_shards": [9]}}, "9 of the 8 shards"),
        ({"mup_base_width": 8}, r"mup_base_width\s+is of transfer: mup"),
        ({"base": "swin_b_in1k"}, "sweeps shape the families vit and deit"),
        ({"sizes": None}, r"sizes\s+is required, or models"),
        ({"models": MODELS}, "models says which models there are: give one of both"),
        ({"sizes": None, "models": {"vit": {}}}, "models"),
        ({"sizes": None, "models": MODELS, "hold_out": 1}, "wants a law, which models of several architectures do not share"),
        ({"sizes": None, "models": MODELS, "transfer": "mup"}, "mup is of the widths of one family"),
        ({"sizes": None, "models": MODELS, "mup_base_width": 8}, r"mup_base_width\s+does nothing with models"),
        ({"sizes": None, "models": MODELS, "fit": {"forms": ["m1"]}}, r"fit.forms\s+does nothing with models"),
        ({"sizes": None, "models": MODELS, "fit": {"delta": 0.1}}, r"fit.delta\s+does nothing with models"),
        ({"sizes": None, "models": MODELS, "mode": "star"}, "wants grid or isoflop with models, got star"),
        ({"sizes": None, "models": MODELS, "budgets": None}, r"budgets\s+are required by mode isoflop"),
        ({"sizes": None, "models": MODELS | {"convnext": {"family": "convnext", "width": 8}}}, r"a run of convnext(.|\n)*model.width"),
    ],
)
def test_a_mistake_is_named_by_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        made(tmp_path, **changes)


def test_every_shipped_sweep_expands_into_sound_recipes(tmp_path: Path) -> None:
    files = sorted((RECIPES / "sweeps").glob("*.yaml"))
    assert "quickstart" in {file.stem for file in files}
    for file in files:
        sweep, source = load_sweep(str(file))
        plan = expand(sweep, source, tmp_path)
        assert len(plan.runs) >= (10 if sweep.models is None else 6)
        path = tmp_path / "run.yaml"
        path.write_text(write_yaml(plan.runs[0].recipe.model_dump(mode="json")))
        assert load_recipe(path) == plan.runs[0].recipe
