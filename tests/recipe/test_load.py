"""From files and overrides to a recipe; every mistake at once, by its dotted key."""

import pytest

import vitscale.recipe.load as load
from vitscale.errors import RecipeError
from vitscale.recipe import Duration, find_recipe, load_recipe, parse_override, recipe_files

BASE = """\
name: run
model: {size: tiny}
data: {train: "a-{0..1}.tar"}
optim: {lr: 1e-3}
global_batch: 8
duration: 3 epochs
"""


@pytest.fixture
def load_text(tmp_path):
    def load_text(text=BASE, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return load_text


@pytest.fixture
def mistakes(load_text):
    def mistakes(text=BASE, *overrides):
        with pytest.raises(RecipeError) as caught:
            load_text(text, *overrides)
        head, *lines = str(caught.value).splitlines()
        assert "run.yaml: " in head
        return [head.rpartition("run.yaml: ")[2], *(" ".join(line.split()) for line in lines)]

    return mistakes


def test_defaults_and_types(load_text):
    recipe = load_text()
    assert recipe.data.train == ("a-{0..1}.tar",)
    assert recipe.duration == Duration(3, "epochs")
    assert (recipe.optim.lr, recipe.optim.betas, recipe.ema, recipe.parallel.engine) == (1e-3, (0.9, 0.999), None, "ddp")


def test_a_recipe_is_frozen(load_text):
    with pytest.raises(ValueError, match="frozen"):
        load_text().optim.lr = 2.0


def test_overrides_of_every_kind(load_text):
    recipe = load_text(
        BASE, "optim.lr=3e-4", "model.size=null", "model={width: 96, depth: 2, heads: 3, mlp: 192}", "model.depth=4",
        "ema.decay=0.99", "checkpoint.every=100 steps", "data.augment.scale=[0.5, 1]", "parallel.compile=true",
        "name=other", "global_batch=1.6e1", "seed=0x10", "data.train=[a.tar, b.tar]",
    )
    assert (recipe.optim.lr, recipe.model.size, recipe.model.depth, recipe.ema.decay) == (3e-4, None, 4, 0.99)
    assert (recipe.checkpoint.every, recipe.data.augment.scale) == (Duration(100, "steps"), (0.5, 1))
    assert (recipe.parallel.compile, recipe.name, recipe.global_batch, recipe.seed) == (True, "other", 16, 16)
    assert recipe.data.train == ("a.tar", "b.tar")


@pytest.mark.parametrize("null", ["null", "~", ""])
def test_null_takes_a_value_away(load_text, null):
    assert load_text(BASE + "ema: {decay: 0.9}\n", f"ema={null}").ema is None


def test_a_later_override_wins(load_text):
    assert load_text(BASE, "seed=1", "seed=2").seed == 2


def test_an_override_leaves_other_users_of_an_anchor_alone(load_text):
    text = BASE + "checkpoint: &often {every: 1 epochs}\nevaluate: {<<: *often}\n"
    recipe = load_text(text, "checkpoint.every=2 epochs")
    assert (recipe.checkpoint.every.amount, recipe.evaluate.every.amount) == (2, 1)


def test_parse_override():
    assert parse_override("optim.lr=3e-4") == (["optim", "lr"], 0.0003)
    assert parse_override("data.train=s3://b/a-{0..3}.tar?x=y") == (["data", "train"], "s3://b/a-{0..3}.tar?x=y")
    assert parse_override("ema=null") == (["ema"], None)


def test_every_mistake_at_once(mistakes):
    found = mistakes(
        BASE.replace("lr: 1e-3", "lr: abc, learning_rte: 1"), "nokey", "a..b=1", "seed.x=1", "model.size=giantic", "data.train=3",
        "data.augment.mean=[1, 2]", "optim.betas=0.9", "optim.clip_norm=0", "optim.weight_decay=.nan", "parallel=5",
        "ema.decay=2", "seed=true", "global_batch=1.5", "micro_batch=0", "duration=3 weeks", "name=../x", "1=2",
    )
    assert found[0] == "18 mistakes"
    assert set(found[1:]) == {
        "override 'nokey': wants key=value with a dotted key, such as optim.lr=3e-4",
        "override 'a..b=1': wants key=value with a dotted key, such as optim.lr=3e-4",
        "name wants text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$, got '../x'",
        "model.size wants one of tiny, small, base, large, so400m, huge, giant, gigantic, got 'giantic'",
        "data.train wants a brace URL or glob of shards, or a list of them, got 3",
        "data.augment.mean wants a longer list, got (1, 2)",
        "optim.lr wants a number, got 'abc'",
        "optim.learning_rte is no key of optim; the keys are name, lr, betas, eps, weight_decay, weight_decay_end, schedule, warmup, "
        "cooldown, timescale, min_lr, clip_norm, layer_decay, patch_embed_rate, freeze",
        "optim.betas wants a list, got 0.9",
        "optim.clip_norm wants a number > 0, got 0",
        "optim.weight_decay wants a finite number, got nan",
        "parallel wants a section of keys, got 5",
        "ema.decay wants a number < 1, got 2",
        "seed wants a whole number, got True",
        "global_batch wants a whole number, got 1.5",
        "micro_batch wants a number >= 1, got 0",
        "duration wants a number and a unit, such as '300 epochs', '90000 steps' or '5e8 images', got '3 weeks'",
        "1 is no key of a recipe; the keys are name, model, data, objective, optim, global_batch, micro_batch, duration, parallel, "
        "checkpoint, evaluate, ema, lora, observe, resilience, seed, runs_dir, profile, init, format",
    }


def test_an_override_into_a_value_is_named(mistakes):
    assert mistakes(BASE + "seed: 1\n", "seed.x=1")[1] == "override 'seed.x': seed is 1, not a section"


def test_a_near_miss_is_answered(mistakes):
    assert mistakes(BASE, "optim.weight_decy=1")[1].endswith("(did you mean weight_decay?)")


def test_what_is_required(mistakes):
    assert mistakes("name: run\n") == [
        "5 mistakes", *(f"{key} is required and not given" for key in ("model", "data", "optim", "global_batch", "duration")),
    ]


@pytest.mark.parametrize(("text", "given"), [("- 1\n", "[1]"), ("", "nothing (null)"), ("word", "'word'")])
def test_a_file_that_is_no_mapping(mistakes, text, given):
    assert mistakes(text) == [f"wants keys and values at the top (name: ..., model: ...), got {given}"]


def test_files_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    (shipped / "sweeps").mkdir(parents=True)
    for name in ("tiny.yaml", "sweeps/grid.yaml"):
        (shipped / name).write_text(BASE)
    (tmp_path / "mine.yaml").write_text(BASE)
    monkeypatch.setattr(load, "RECIPES", shipped)
    monkeypatch.chdir(tmp_path)
    assert recipe_files() == [shipped / "tiny.yaml"]                # a sweep is no run
    assert find_recipe("mine.yaml").samefile(tmp_path / "mine.yaml")
    assert find_recipe("tiny") == find_recipe("recipes/tiny.yaml") == shipped / "tiny.yaml"
    with pytest.raises(RecipeError, match=r"tinny: no such file.*did you mean tiny\?"):
        find_recipe("tinny")
    with pytest.raises(RecipeError, match="no such file"):
        find_recipe("elsewhere/tiny.yaml")


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(path)
