"""A sweep of runs without labels is judged by the error of k-NN or of a linear probe: expanded, fitted, recommended, and refused."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from running import UNLABELLED

from vitscale.errors import RecipeError
from vitscale.plan.flops import training_flops_per_image
from vitscale.recipe import load_recipe
from vitscale.recipe.text import write_yaml
from vitscale.scaling.expand import SweepPlan, expand
from vitscale.scaling.report import FitRequest, fit_sweep
from vitscale.scaling.stages import lay_out
from vitscale.scaling.sweep import load_sweep

SWEEP: dict[str, Any] = {
    "name": "made", "base": "seen.yaml", "mode": "isoflop", "set": {"data.num_samples": 1438, "evaluate.early_stopping": None},
    "sizes": {"rule": "aspect", "widths": [8, 16, 24, 32, 48], "width_per_layer": 16, "head_width": 8, "mlp_ratio": 2},
    "budgets": [3e10, 1e11, 3e11, 1e12], "hold_out": 1, "epochs": [0.05, 1000], "fit": {"metric": "eval_knn"}}


def made(folder: Path, **changes: Any) -> SweepPlan:
    (folder / "seen.yaml").write_text(UNLABELLED)
    (folder / "sweep.yaml").write_text(write_yaml(SWEEP | changes))
    sweep, source = load_sweep(str(folder / "sweep.yaml"))
    return expand(sweep, source, folder / "out")


def error_of(n: float, d: float) -> float:
    """The truth that the made-up runs follow: error of k-NN, with a floor."""
    return 0.05 + 3 * n**-0.4 + 4 * d**-0.4


@pytest.mark.parametrize("metric", ["eval_knn", "eval_linear"])
def test_a_law_of_the_error_is_fitted_and_recommends_a_run_without_labels(tmp_path: Path, metric: str) -> None:
    plan = made(tmp_path, fit={"metric": metric})
    for run in plan.runs:
        assert run.c == run.d * training_flops_per_image(run.recipe.model, run.recipe.objective, run.recipe.data.views)
    folder = tmp_path / "out"
    lay_out(plan, folder, tmp_path / "sweep.yaml")
    for run in plan.runs:
        told = {"state": "done", "images": run.d, "eval_loss": 3.0, "eval_knn": 0.5, "eval_linear": 0.5, "eval_rankme": 7.0}
        (folder / "runs" / run.name).mkdir(parents=True)
        (folder / "runs" / run.name / "outcome.json").write_text(json.dumps(told | {metric: 1 - error_of(run.n, run.d)}))
    console = Console(file=io.StringIO(), width=200)
    fit_sweep(folder, FitRequest(forms=("chinchilla3",)), folder, None, 0.0, False, console)
    told = json.loads((folder / "fit.json").read_text())
    assert told["data"]["metric"] == metric
    assert told["data"]["points"] == len(plan.first)
    plan_next = json.loads((folder / "plan.json").read_text())
    assert plan_next["of"] == f"1 - {metric}"
    assert plan_next["predicted"][0] == pytest.approx(error_of(plan_next["n"][0], plan_next["d"][0]), rel=0.01)
    recommended = load_recipe(folder / "recommended.yaml")
    assert recommended.objective == plan.runs[0].recipe.objective
    assert recommended.data.views == plan.runs[0].recipe.data.views
    assert math.isclose(plan_next["recommended"]["c"], plan_next["budget_flop"], rel_tol=0.2)
    assert f"predicted 1 - {metric} " in console.file.getvalue()


@pytest.mark.parametrize(("changes", "words"), [
    ({"fit": {"metric": "eval_top1"}}, "would not tell eval_top1: they tell eval_knn, eval_linear, eval_loss, eval_rankme"),
    ({"set": SWEEP["set"] | {"evaluate.features": ["rankme"], "checkpoint.best": None}},
     "would not tell eval_knn: they tell eval_loss, eval_rankme"),
    ({"fit": {"metric": "eval_rankme"}}, "RankMe rises without a bound"),
    ({"fit": {"metric": "eval_nn"}}, "fit.metric"),
    ({"set": SWEEP["set"] | {"data.val": None, "evaluate": {}, "checkpoint.best": None}, "fit": {"metric": "eval_loss"}}, "data.val"),
])
def test_what_runs_do_not_tell_judges_no_sweep(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        made(tmp_path, **changes)
