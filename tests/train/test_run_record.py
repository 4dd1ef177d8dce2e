"""What a run's folder says of its settings: what each attempt trained with, and not one byte otherwise when nothing is trained."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import SMALL, Run, train

from vitscale.cluster.attempt import RunOver, begin
from vitscale.cluster.site import Site
from vitscale.cluster.submit import plan_run, plan_sweep
from vitscale.cluster.used import Used, changed_in, lasting, note_used, used_in
from vitscale.errors import CheckpointError
from vitscale.observe.modelcard import render_card
from vitscale.parallel.rank_info import RankInfo
from vitscale.recipe import find_recipe, load_recipe
from vitscale.recipe.load import read_values
from vitscale.recipe.text import write_yaml
from vitscale.resilience.restarts import attempts_of
from vitscale.resilience.signals import StopFlag
from vitscale.train.record import what_next
from vitscale.train.run import run as run_rank
from vitscale.train.start import train as start_train

SETTINGS = [*SMALL, "name=c", "optim.warmup=0 steps", "data.val=null", "checkpoint.every=4 steps"]
CHANGED = {     # a group of keys for each part of the recipe: what refuses, with old and new value
    "optim.lr=7": "optim.lr: 0.003 -> 7.0", "optim.name=lion": "optim.name: adamw -> lion", "optim.betas=[0.8,0.9]": "optim.betas: [0.9",
    "duration=12 steps": "duration: 8 steps -> 12 steps", "duration=4 steps": "duration: 8 steps -> 4 steps", "seed=5": "seed: 0 -> 5",
    "model.depth=2": "model.depth: 3 -> 2", "objective.label_smoothing=0.1": "objective.label_smoothing: 0.0 -> 0.1",
    "data.augment.flip=0.5": "data.augment.flip: 0.0 -> 0.5", "ema.decay=0.9": "ema: None -> {'decay': 0.9}",
    "parallel.precision=bf16": "parallel.precision: fp32 -> bf16", "evaluate.crop=0.5": "evaluate.crop: 1.0 -> 0.5",
    "global_batch=64": "global_batch: 32 -> 64", "init=elsewhere": "init: None -> elsewhere",
}
FREE = ["observe.log_every=5", "parallel.processes=2", "parallel.engine=fsdp", "micro_batch=8", "checkpoint.keep=9", "data.workers=3",
        "resilience.hang_timeout=9", "observe.exporter=true", "profile=steps:2-3"]
NEVER = ("seed=5", "global_batch=64", "init=elsewhere")     # whatever is accepted


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder in which the run c has made its 8 steps, by a recipe that says nothing of classes."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    silent = read_values(find_recipe("quickstart"), "")
    del silent["model"]["classes"]
    (folder / "silent.yaml").write_text(write_yaml(silent))
    (folder / "output").write_text(train(folder, *SETTINGS, "duration=8 steps", recipe="silent.yaml"))
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which this test stands."""
    place = tmp_path / "place"
    shutil.copytree(finished, place, symlinks=True)
    monkeypatch.chdir(place)
    return place


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """(mtime in ns, bytes) of every file and folder."""
    found = {str(path.relative_to(folder)): path for path in [folder, *folder.rglob("*")]}
    return {name: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for name, path in found.items()}


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before


def by_hand(*overrides: str, accept: bool = False) -> int:
    """`vitscale train` in this process, of a run that starts no rank."""
    return start_train("quickstart", [*SETTINGS, "duration=8 steps", *overrides], accept, False, StopFlag())


def every_way(*overrides: str, accept: bool = False) -> list[CheckpointError | RunOver | int]:
    """What comes of a start by hand, as either rank of a foreign launcher, and as a batch job before its ranks."""
    def rank(number: int) -> int:
        return run_rank(load_recipe("quickstart", settings), RankInfo(number, 2, number, 2), StopFlag(), accept)

    settings = [*SETTINGS, "duration=8 steps", *overrides]
    found: list[CheckpointError | RunOver | int] = []
    for start in (lambda: by_hand(*overrides, accept=accept), lambda: rank(0), lambda: rank(1),
                  lambda: begin("quickstart", settings, {"SLURM_JOB_ID": "7"}, accept_changes=accept)):
        try:
            found.append(start())       # type: ignore[arg-type]
        except (CheckpointError, RunOver) as error:
            found.append(error)
    return found


@pytest.mark.parametrize("overrides", [[], FREE], ids=["the same", "what is free"])
def test_a_done_run_says_so_and_is_not_touched(here: Path, overrides: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with untouched(here / "runs" / "c"):
        for accept in (False, True):
            *codes, over = every_way(*overrides, accept=accept)
            assert codes == [0, 0, 0]
            assert isinstance(over, RunOver)
            assert over.exit_code == 0
    told = capfd.readouterr().err
    assert "runs/c is done at step 8 (trained for 8 steps): nothing is left to train; name=NEW begins another run" in told


@pytest.mark.parametrize("done", [True, False], ids=["done", "unfinished"])
def test_changed_settings_are_refused_before_anything_is_touched(here: Path, done: bool) -> None:
    """Key by key, with the old and the new value, and however the run is started."""
    run = here / "runs" / "c"
    if not done:
        (run / "outcome.json").unlink()
    with untouched(run):
        for override, line in CHANGED.items():
            for found in every_way(override, *FREE):
                assert isinstance(found, CheckpointError), override
                assert found.exit_code == 2
                assert f"\n  {line}" in str(found)
                assert "name=NEW" in str(found)
                assert ("resume this run all the same: --accept-changes" in str(found)) == (override not in NEVER)
            if override in NEVER:
                assert all(isinstance(found, CheckpointError) for found in every_way(override, accept=True))
        both = str(every_way("optim.lr=7", "duration=12 steps", "data.label=txt")[0])
        assert [line.split(":")[0].strip() for line in both.splitlines() if " -> " in line] == ["data.label", "optim.lr", "duration"]


def test_what_data_know_is_taken_over_said_and_saved(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = "taken over from data/digits/classes.txt, since the recipe does not say: model.classes 10"
    output = " ".join((here / "output").read_text().split())
    assert output.index(words) < output.index("run folder runs/c")
    run = here / "runs" / "c"
    assert load_recipe(run / "recipe.yaml").model.classes == 10
    assert (run / "classes.txt").read_text() == (here / "data" / "digits" / "classes.txt").read_text()
    with untouched(run):        # it goes on so, whatever the data say by now
        (here / "data" / "digits").unlink()
        (here / "data" / "digits").mkdir()
        (here / "data" / "digits" / "classes.txt").write_text("zero\none\n")
        assert start_train("silent.yaml", [*SETTINGS, "duration=8 steps"], False, False, StopFlag()) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "data/digits/classes.txt says otherwise: model.classes is 10, there 2" in said


def test_the_shards_of_a_done_run_count_by_what_they_hold(here: Path) -> None:
    (here / "moved").symlink_to(here / "data" / "digits")
    with untouched(here / "runs" / "c"):
        assert by_hand("data.train=moved/train-*.tar") == 0
        with pytest.raises(CheckpointError, match=r"\(the run is done\).*\n  index_hash: "):
            by_hand("data.train=moved/val-*.tar", "data.num_samples=null")


def test_what_would_not_train_is_not_submitted(here: Path) -> None:
    """Nor anything noted in its folder; what was accepted goes to the ranks."""
    settings, site = [*SETTINGS, "duration=8 steps"], Site()
    with untouched(here / "runs" / "c"):
        with pytest.raises(RunOver, match="is done at step 8"):
            plan_run("quickstart", settings, site)
        with pytest.raises(CheckpointError, match=r"duration: 8 steps -> 12 steps"):
            plan_run("quickstart", [*settings, "duration=12 steps"], site)
        assert "'duration=12 steps' --accept-changes" in plan_run("quickstart", [*settings, "duration=12 steps"], site,
                                                                  accept_changes=True).script
        (here / "sweep").mkdir()
        (here / "sweep" / "a.yaml").write_text((here / "runs" / "c" / "recipe.yaml").read_text().replace("lr: 0.003", "lr: 7.0"))
        with pytest.raises(CheckpointError, match=r"optim.lr: 0.003 -> 7.0"):
            plan_sweep(here / "sweep", (), site)


def test_accepted_changes_that_leave_nothing_to_train_are_refused(here: Path) -> None:
    with untouched(here / "runs" / "c"):
        for overrides in (["optim.lr=7"], ["duration=4 steps"]):
            with pytest.raises(CheckpointError, match=r"the run has seen 256 images, and with these settings is over after (256|128)"):
                by_hand(*overrides, accept=True)


def test_a_run_whose_checkpoints_are_gone_is_done_all_the_same(here: Path) -> None:
    run = here / "runs" / "c"
    shutil.rmtree(run / "checkpoints")
    with untouched(run):
        assert by_hand() == 0
        with pytest.raises(CheckpointError, match=r"recipe.yaml \(the run is done\).*\n  optim.lr: 0.003 -> 7.0"):
            by_hand("optim.lr=7")


@pytest.mark.slow
def test_a_reader_sees_which_settings_made_which_steps(here: Path) -> None:
    """An attempt that makes no step changes nothing that tells of those before it; one that trains adds to it."""
    run = Run(here / "runs" / "c")
    assert (run.folder / "recipe.yaml").read_text().startswith("name: c\n")
    recorded = (run.folder / "metrics.jsonl").read_bytes()
    (run.folder / "outcome.json").unlink()      # as if killed after the last checkpoint
    papers = {name: (run.folder / name).read_bytes() for name in ("recipe.yaml", "environment.json", "settings.jsonl")}
    train(here, *SETTINGS, "duration=8 steps", "observe.log_every=2")
    assert {name: (run.folder / name).read_bytes() for name in papers} == papers
    assert len(attempts_of(run.folder)) == 2

    output = train(here, *SETTINGS, "duration=12 steps", "optim.lr=1e-4", "--accept-changes")
    assert "accepted change since step-00000008: optim.lr: 0.003 -> 0.0001" in output
    assert (run.folder / "metrics.jsonl").read_bytes().startswith(recorded)
    assert [(row["attempt"], row["step"]) for row in run.rows() if "loss" in row] == [(1 if step < 9 else 3, step) for step in range(1, 13)]
    assert [(one.attempt, one.step, one.recipe["optim"]["lr"], one.recipe["duration"]) for one in used_in(run.folder)] == [
        (1, 0, 3e-3, "8 steps"), (3, 8, 1e-4, "12 steps")]
    told = "from step 9 on (attempt 3): optim.lr: 0.003 -> 0.0001, duration: 8 steps -> 12 steps"
    assert [str(one) for one in changed_in(run.folder)] == [told]
    assert f"#   {told}\n" in (run.folder / "recipe.yaml").read_text()
    assert load_recipe(run.folder / "recipe.yaml").optim.lr == 1e-4
    card = (run.folder / "README.md").read_text()
    assert card == render_card(run.folder)
    assert "from step 9 on (attempt 3): optim.lr: 0.003 -> 0.0001" in card.replace("\\", "")
    assert "from step 9 on (attempt 3): optim.lr: 0.003" in (run.folder / "report.html").read_text()


def test_steps_that_were_made_again_do_not_count(tmp_path: Path) -> None:
    def row(attempt: int, step: int, lr: float) -> Used:
        return Used(attempt, step, load_recipe("quickstart", [f"optim.lr={lr}"]).model_dump(mode="json"))

    rows = [row(1, 0, 0.1), row(2, 20, 0.2), row(3, 20, 0.1), row(5, 40, 0.1), row(6, 30, 0.3), row(7, 50, 0.3)]
    assert [one.attempt for one in lasting(rows)] == [1, 3, 6, 7]
    for one in rows:
        note_used(tmp_path, one)
    assert used_in(tmp_path) == rows
    assert [str(one) for one in changed_in(tmp_path)] == ["from step 31 on (attempt 6): optim.lr: 0.1 -> 0.3"]
    assert "optim.lr: 0.1 -> 0.3" in (tmp_path / "recipe.yaml").read_text().partition("name:")[0]
    assert sum("recipe" in json.loads(line) for line in (tmp_path / "settings.jsonl").read_text().splitlines()) == 4   # others: as before
    with open(tmp_path / "settings.jsonl", "a") as file:
        file.write('{"attempt": 9, "st')
    note_used(tmp_path, row(8, 60, 0.3))
    assert used_in(tmp_path) == [*rows, row(8, 60, 0.3)]


def test_the_settings_of_a_run_that_older_versions_began_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    before, now = (load_recipe("quickstart", [f"optim.lr={lr}"]).model_dump(mode="json") for lr in (0.1, 0.2))
    note_used(tmp_path, Used(4, 20, now), before)
    assert [str(one) for one in changed_in(tmp_path)] == ["from step 21 on (attempt 4): optim.lr: 0.1 -> 0.2"]


@pytest.mark.parametrize(("recipe", "overrides", "words"), [
    ("quickstart", (), "`vitscale eval 'my runs/a'` for its accuracy, `vitscale predict IMAGES -m 'my runs/a'` for its predictions"),
    ("quickstart", ("data.val=null",),
     "`vitscale eval 'my runs/a' --data SHARDS` for its accuracy, `vitscale predict IMAGES -m 'my runs/a'` for its predictions"),
    ("mae_l16_in1k", (),
     "`vitscale embed IMAGES -m 'my runs/a'` for its features, `vitscale explain 'my runs/a' IMAGES` for what it looks at"),
])
def test_the_end_of_a_run_names_the_next_command(recipe: str, overrides: tuple[str, ...], words: str) -> None:
    assert what_next(load_recipe(recipe, overrides), Path("my runs/a")) == words
