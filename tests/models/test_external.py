"""Backbones of other packages: found by name, built with their own options, refused where they could not be trained exactly."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from offering import DOCS, files_in, offer

from vitscale.checkpoint.foreign import read_folder
from vitscale.cluster.bill import bill, describe, links_needed
from vitscale.cluster.site import Site
from vitscale.errors import ClusterError, RecipeError
from vitscale.models import Backbone, build_model, initialise
from vitscale.objectives import num_parameters
from vitscale.plan import find_fleet, plan_run
from vitscale.plan.forecast import check_micro_batch, forecast
from vitscale.recipe import Recipe
from vitscale.recipe.bound import changes, settings_of
from vitscale.recipe.external import package_of
from vitscale.recipe.load import check_recipe
from vitscale.recipe.schema import FAMILIES, External
from vitscale.recipe.text import write_yaml
from vitscale.scaling.expand import expand
from vitscale.scaling.sweep import load_sweep
from vitscale.shapes.families import check_model

CONVMIXER = files_in(DOCS.read_text())["convmixer.py"]
VALUES = {"name": "x", "data": {"train": "t-0.tar", "num_samples": 64}, "optim": {"lr": 1e-3}, "global_batch": 8, "micro_batch": 4,
          "duration": "2 epochs", "model": {"family": "other", "image": 8, "channels": 1, "classes": 10, "options": {"width": 16}}}


def values(**model: object) -> dict[str, object]:
    return {**VALUES, "model": {**VALUES["model"], **model}}        # type: ignore[dict-item]


def recipe(**model: object) -> Recipe:
    return check_recipe(values(**model), "test")


@pytest.fixture
def convmixer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "convmixer", monkeypatch, CONVMIXER)


def test_it_is_built_with_its_options_and_trained_as_others_are(convmixer: None) -> None:
    section = recipe(drop_path=0.2, options={"width": 16, "depth": 3}).model
    model = build_model(section)
    initialise(model, seed=0)
    images = torch.randn(2, 1, 8, 8)
    assert isinstance(model, Backbone)
    assert model(images).shape == (2, 10)
    assert model(images, torch.ones(3, 2)).abs().sum() == 0         # the classifier begins at 0, as all do
    assert model.drop_rates == pytest.approx((0.0, 0.1, 0.2))
    assert model.no_decay() == {name for name, value in model.named_parameters() if value.ndim == 1}
    again = build_model(section)
    initialise(again, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert package_of(section) == {"others-module": "1.5"}
    assert num_parameters(section, recipe().objective) == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(("options", "sentence"), [
    ({"widht": 16}, "did you mean width?"), ({}, "width  is required and not given"), ({"width": "16"}, "wants a whole number, got '16'"),
    ({"width": 16.5}, "wants a whole number, got 16.5"), ({"width": None}, "wants a whole number, got nothing (null)"),
    ({"width": True}, "wants a whole number, got True"),
])
def test_options_are_held_against_the_builders_signature(convmixer: None, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_model(recipe(options=options).model)
    assert "model.options" in str(caught.value)
    assert sentence in str(caught.value)


def test_a_builder_may_take_lists_and_any_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "def listed(model, widths: tuple[int, ...]):\n    return build(model, width=widths[-1])\n"
    offer(tmp_path / "a", monkeypatch, CONVMIXER + listing, target="listed")
    assert build_model(recipe(options={"widths": [8, 24]}).model).head.in_features == 24        # type: ignore[union-attr]
    open_ = "def anything(model, **options):\n    return build(model, **options)\n"
    offer(tmp_path / "b", monkeypatch, CONVMIXER + open_, name="open", package="open_module", target="anything")
    assert build_model(recipe(family="open", options={"width": 12}).model).head.in_features == 12       # type: ignore[union-attr]


UNSOUND = {
    "batch statistics (norm: BatchNorm2d)": "built.norm = torch.nn.BatchNorm2d(16)",
    "batch statistics (deep.1: SyncBatchNorm)": "built.deep = torch.nn.Sequential(torch.nn.GELU(), torch.nn.SyncBatchNorm(16))",
    "has buffers (table)": "built.register_buffer('table', torch.zeros(3))",
    "model.drop_path is 0.1": "built.drop_rates = ()",
    "is no vitscale.models.Backbone, but of torch.nn.modules.linear.Linear": "built = torch.nn.Linear(2, 2)",
    "failed, ZeroDivisionError": "1 / 0",
    "failed, KeyError: 'gone'": "raise KeyError('gone')",
}


@pytest.mark.parametrize("sentence", UNSOUND)
def test_what_could_not_be_trained_exactly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: str) -> None:
    source = CONVMIXER + f"\nimport torch\ndef odd(model):\n    built = build(model, 16)\n    {UNSOUND[sentence]}\n    return built\n"
    offer(tmp_path, monkeypatch, source, target="odd")
    with pytest.raises(RecipeError) as caught:
        build_model(recipe(options={}, drop_path=0.1).model)
    assert sentence in str(caught.value)
    assert "others-module 1.5 (others_module:odd)" in str(caught.value)


def test_dropout_that_a_model_has_not_is_refused(convmixer: None) -> None:
    with pytest.raises(RecipeError, match=r"model\.dropout is 0\.1; take 0"):
        build_model(recipe(dropout=0.1).model)


@pytest.mark.parametrize(("source", "target", "sentence"), [
    ("import nowhere_to_be_found", "build", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("x = (", "build", "SyntaxError"), ("", "build", "AttributeError"), ("build = 3", "build", "TypeError"),
    ("def build(): pass", "build", "TypeError"),
])
def test_a_package_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str,
                                               sentence: str) -> None:
    offer(tmp_path, monkeypatch, source, target=target)
    with pytest.raises(RecipeError) as caught:
        build_model(recipe(options={}).model)
    assert sentence in str(caught.value)
    assert "others-module 1.5" in str(caught.value)


def test_initial_values_are_a_backbones_own_where_it_says_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CONVMIXER + """
import torch
class Own(ConvMixer):
    def __init__(self, model):
        super().__init__(model, 16, 1, 3, 2)
        self.gate, self.deep = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(4, 4, 3))
    def initial_value(self, name, shape, generator):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) if name == "gate" and self.knows else None
    knows = True
class Silent(Own):
    knows = False
"""
    offer(tmp_path, monkeypatch, source, target="Own")
    model = build_model(recipe(options={}).model)
    initialise(model, seed=3)
    first = model.gate.detach().clone()     # type: ignore[union-attr, operator]
    assert 0 < first.min() < first.max() < 1
    assert first.dtype == torch.float32
    assert model.deep.std() > 0             # type: ignore[union-attr, operator]  a convolution along one dimension
    initialise(model, seed=4)
    assert not torch.equal(model.gate, first)       # type: ignore[arg-type]
    offer(tmp_path / "silent", monkeypatch, source, name="silent", package="silent_module", target="Silent")
    with pytest.raises(RecipeError, match="of the parameter gate, of shape \\(16,\\), no initial value is known"):
        initialise(build_model(recipe(family="silent", options={}).model), seed=3)


def test_two_packages_with_one_name_are_both_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convmixer: None) -> None:
    offer(tmp_path / "second", monkeypatch, CONVMIXER, package="second_module")
    with pytest.raises(RecipeError) as caught:
        recipe()
    assert "others-module 1.5" in str(caught.value)
    assert "second-module 1.5" in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_our_own_families_cannot_be_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    offer(tmp_path, monkeypatch, "raise SystemExit('imported')", name=family)
    section = Recipe.model_validate(values(family=family, options={}) | {"model": {"family": family, "size": "tiny"}}).model
    assert type(section) is FAMILIES[family]


@pytest.mark.parametrize("model", [
    {"family": "swinn", "size": "tiny"}, {"family": "swinn"}, {"family": "Vit", "width": 8}, {"family": "other", "image": 8},
    {"family": "", "options": {}}, {"family": "../x", "options": {}}, {"family": ["vit"]}, {"family": None}, {"family": 3, "options": {}},
])
def test_a_family_that_nobody_offers_is_told_with_those_that_are(model: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe({**VALUES, "model": model}, "test")
    assert "model.family" in str(caught.value)
    if model.get("family"):
        assert "wants one of vit, deit, swin, convnext" in str(caught.value) or "text that matches" in str(caught.value)


@pytest.mark.parametrize("options", [
    {"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {1: 2}, {"x": {2: 3}}, [1], "width", {"x": b"1"}])
def test_options_are_plain_values(options: object) -> None:
    with pytest.raises(RecipeError, match=r"model\.options.*wants keys with plain values"):
        recipe(options=options)


def test_reading_a_recipe_imports_nothing_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gave one, a recipe, a run or an exported folder names code; it does not run it."""
    offer(tmp_path, monkeypatch, "raise SystemExit('imported')")
    read = recipe(options={"width": 16, "more": {"a": [1, 2.5, None, "x"]}})
    again = Recipe.model_validate(read.model_dump(mode="json"))
    assert again == read
    assert hash(again.model) == hash(read.model)
    assert isinstance(read.model, External)
    assert package_of(read.model)
    assert "others_module" not in sys.modules
    other = recipe(options={"width": 32, "more": {"a": [1, 2.5, None, "x"]}})
    before, now = (settings_of(one.model_dump(mode="json")) for one in (read, other))
    assert [(one.key, one.kind) for one in changes(before, now)] == [("model.options.width", "training")]


def test_what_a_folder_names_and_nobody_installed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"vitscale": "0.1.0", "model": {"family": "evil", "image": 8, "options": {}}, "class_names": [], "transform": {"image": 8, '
        '"channels": 3, "crop": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    with pytest.raises(Exception, match=r"got 'evil'.*install the package that has it") as caught:
        read_folder(tmp_path)
    assert not isinstance(caught.value, SystemExit)


def test_what_it_costs_is_not_known_and_said_so(convmixer: None) -> None:
    one = recipe()
    assert forecast(one) is None
    check_micro_batch(one)
    with pytest.raises(RecipeError, match=r"micro_batch: is required with model\.family other"):
        check_micro_batch(one.model_copy(update={"micro_batch": None}))
    with pytest.raises(RecipeError, match="other has no analytic formulas"):
        plan_run(one, find_fleet("8xH100"))
    site = Site(nodes=2, gpus_per_node=4, gpu="H100", time="1:00:00")
    known = bill(one, site)
    assert (known.params, known.ranks, known.micro_batch, known.hours) == (None, 8, 4, None)
    assert any("not known" in line for line in describe(known, site))
    with pytest.raises(ClusterError, match="of this model that is not known; say how many"):
        links_needed(known, site)
    with pytest.raises(RecipeError, match="micro_batch: is required"):
        bill(one.model_copy(update={"micro_batch": None}), site)


def test_a_sweep_that_counts_flops_refuses_it(tmp_path: Path, convmixer: None) -> None:
    (tmp_path / "base.yaml").write_text(write_yaml({**VALUES, "data": {**VALUES["data"], "val": "v-0.tar"}}))       # type: ignore[dict-item]
    sweep = {"name": "s", "base": str(tmp_path / "base.yaml"), "mode": "isoflop", "budgets": [1e9, 2e9],
             "models": {"one": {"family": "other", "options": {"width": 8}}, "two": {"family": "other", "options": {"width": 16}}}}
    (tmp_path / "sweep.yaml").write_text(write_yaml(sweep))
    with pytest.raises(RecipeError, match="other has no analytic formulas"):
        expand(*load_sweep(str(tmp_path / "sweep.yaml")), tmp_path / "out")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_ours_needs_no_formulas_either(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    one = check_recipe({**VALUES, "model": {"family": family, "size": "tiny", "image": 224},
                        "objective": {"name": "distillation", "teacher": "t"} if family == "deit" else {"name": "classification"}}, "test")
    assert forecast(one) is not None
    section = FAMILIES[family]
    monkeypatch.setattr(section, "code", replace(section.code, anatomy=None, problems=None))
    assert forecast(one) is None
    check_model(one.model)
    with pytest.raises(RecipeError, match=f"{family} has no analytic formulas"):
        plan_run(one, find_fleet("8xH100"))
