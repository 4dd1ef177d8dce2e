"""Whatever is wrong inside a checkpoint of any engine: it is named, set aside, and the one before it is restored; never another error."""

import functools
import json
import logging
import math
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from running import SMALL
from safetensors.torch import save_file

from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.store import EMA_WEIGHTS, FACTS, MANIFEST, WEIGHTS, CheckpointWriter, checkpoints_in, damage_in, fault_in
from vitscale.data import open_stream
from vitscale.errors import CheckpointError
from vitscale.files import sha256_of, write_json
from vitscale.models import build_model
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Engine
from vitscale.parallel.engines import open_engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Recipe, load_recipe
from vitscale.train.facts import facts_of
from vitscale.train.prepare import Prepared, prepare
from vitscale.train.restore import find_start, restore, restore_newest
from vitscale.train.size import size_up
from vitscale.train.state import Moment, Progress

pytestmark = pytest.mark.slow       # real ranks of three engines, then hundreds of damaged checkpoints in one process

ENGINES = {"ddp": ["ema.decay=0.9"], "fsdp": ["parallel.engine=fsdp", "ema.decay=0.9"],
           "zero": ["parallel.engine=zero", "parallel.zero_stage=3"]}
CHANGED = "the recipe does not describe this run any more"
OLDER, NEWER = "step-00000001", "step-00000002"


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return load_recipe("quickstart", [*SMALL, "model.width=8", "model.depth=1", "model.mlp=16", "data.prefetch=1",
                                      f"runs_dir={root / 'runs'}", "name=r", f"data.train={root}/data/digits/train-*.tar",
                                      f"data.val={root}/data/digits/val-*.tar", *overrides])


EACH = pytest.mark.parametrize("resumed", ["fsdp", pytest.param("ddp", marks=pytest.mark.all), pytest.param("zero", marks=pytest.mark.all)],
                               indirect=True)


class Trained:
    """As far as train/run.py comes before it restores, by the same calls."""

    def __init__(self, recipe: Recipe, prepared: Prepared, world: World) -> None:
        self.recipe, self.prepared, self.world = recipe, prepared, world
        work = size_up(recipe, prepared.train, world)
        self.engine: Engine = open_engine(recipe.parallel, world, work)
        skeleton = build_model(recipe.model)
        model = self.engine.materialise(lambda: build_model(recipe.model), lambda name, shape: dict(skeleton.named_parameters())[name])
        self.engine.adopt(model, build_optimizer(model, recipe.optim))
        self.ema = WeightAverage(self.engine.model, recipe.ema.decay) if recipe.ema else None
        self.stream = open_stream(recipe, prepared.train, "train", rank=world.rank, world=world.size, micro_batch=work.micro_batch,
                                  drop_rates=model.drop_rates, local_ranks=1)


def write(place: RankInfo, root: str, overrides: list[str]) -> None:
    """Two real checkpoints, of steps 1 and 2."""
    recipe = recipe_of(Path(root), *overrides)
    torch.manual_seed(0)
    with joined(recipe.parallel, place) as world:
        prepared = prepare(recipe, look=False)
        one = Trained(recipe, prepared, world)
        writer = CheckpointWriter(prepared.folder / "checkpoints", rank=world.rank, lease=None, attempt=1, settings=recipe.checkpoint)
        with one.stream:
            for step in (1, 2):
                batch = next(one.stream)
                progress = Progress(Moment(step, batch.end), {"step": 1, "metric": "eval_loss", "value": 2.5},
                                    guard={"losses": [2.5, 2.25], "scale": None}, owes_evaluation=True)
                tensors = one.engine.tensors()
                if one.ema is not None:
                    tensors |= {f"ema.{name}": value for name, value in one.ema.tensors().items()}
                writer.save(tensors, facts_of(recipe, prepared, world, progress, one.stream))
        writer.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Callable[[str], Path]:
    """The root of a run with two checkpoints that two ranks of an engine wrote."""
    def of(engine: str) -> Path:
        root = tmp_path_factory.mktemp(engine)
        (root / "data").mkdir()
        (root / "data" / "digits").symlink_to(digits)
        run_ranks(2, write, str(root), ENGINES[engine])
        assert [path.name for path in checkpoints_in(root / "runs/r/checkpoints")] == [OLDER, NEWER]
        return root

    return functools.cache(of)


class Resumed:
    """One process of the engine ddp that resumes a run over and over, as train/run.py does."""

    def __init__(self, root: Path, world: World, caplog: pytest.LogCaptureFixture) -> None:
        recipe = recipe_of(root, *ENGINES["fsdp" if next((root / "runs/r/checkpoints").rglob(EMA_WEIGHTS), None) else "zero"][1:])
        self.one = Trained(recipe, prepare(recipe, look=False), world)
        self.folder = self.one.prepared.folder / "checkpoints"
        self.pristine = self.folder.with_name("pristine")
        if not self.pristine.exists():
            shutil.copytree(self.folder, self.pristine)
        self.lease = Lease.take(self.one.prepared.folder)
        self.newest, self.caplog = self.folder / NEWER, caplog

    def afresh(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.pristine, self.folder)

    def seal(self) -> None:
        """Let the manifest agree with whatever the files are now."""
        manifest = json.loads((self.newest / MANIFEST).read_text())
        for name in manifest["files"]:
            path = self.newest / name
            if path.is_file():
                manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        write_json(self.newest / MANIFEST, manifest)

    def step(self) -> tuple[int, str]:
        """Resume; the step it resumed from, and what was said of the newest checkpoint ("": nothing); or 0 and why it does not go on."""
        self.caplog.clear()
        signal.alarm(120)
        try:
            start = find_start(self.one.recipe, self.one.prepared, self.lease, accept_changes=False)
            _, progress = restore_newest(start, self.one.recipe, self.one.prepared, self.one.world, self.lease,
                                         lambda found: restore(found, self.one.engine, self.one.ema, self.one.stream))
        except CheckpointError as error:
            return 0, str(error)
        finally:
            signal.alarm(0)
        ours = [record for record in self.caplog.records if record.name.startswith("vitscale")]
        said = [record.getMessage() for record in ours if record.levelno == logging.ERROR]
        reason = said[0].partition(" is damaged: ")[2].partition("; kept as ")[0] if said else ""
        assert progress.now.step == (1 if said else 2)
        assert (self.folder / f"damaged-{NEWER}").exists() == bool(said)
        assert not said or reason
        return progress.now.step, reason


@pytest.fixture
def resumed(request: pytest.FixtureRequest, written: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> Iterator[Resumed]:
    with joined(recipe_of(written(request.param)).parallel, RankInfo()) as world:
        run = Resumed(written(request.param), world, caplog)
        with run.one.stream:
            yield run
        run.lease.release()
        shutil.rmtree(run.folder)
        shutil.copytree(run.pristine, run.folder)


def files(checkpoint: Path) -> list[str]:
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


# What becomes of a file.


def flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content) - 1)] ^= 1 << draw.randrange(8)     # the last line feed of a manifest says nothing
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size - 1))


def swapped(path: Path, draw: random.Random) -> None:
    """A piece of it stands somewhere else, over another."""
    content = bytearray(path.read_bytes())
    length = draw.randrange(1, max(2, len(content) // 4))
    start, end = draw.randrange(len(content) - length), draw.randrange(len(content) - length)
    content[start:start + length] = content[end:end + length]
    path.write_bytes(content)


def replaced(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def act(path: Path, draw: random.Random) -> None:
        path.unlink()
        make(path)

    return act


CONTENT = {
    "flipped": flipped, "cut": cut, "swapped": swapped,
    "emptied": lambda path, draw: os.truncate(path, 0),
    "zeroed": lambda path, draw: path.write_bytes(bytes(path.stat().st_size)),
    "random": lambda path, draw: path.write_bytes(draw.randbytes(path.stat().st_size)),
    "longer": lambda path, draw: path.write_bytes(path.read_bytes() + b"x"),
}
KIND = {
    "missing": replaced(lambda path: None), "a folder": replaced(Path.mkdir), "a pipe": replaced(os.mkfifo),
    "a loop": replaced(lambda path: path.symlink_to(path)), "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a way to nowhere": replaced(lambda path: path.symlink_to(path.with_name("nowhere"))),
}


@EACH
def test_any_damage_to_any_file_is_named_and_the_one_before_is_used(resumed: Resumed) -> None:
    assert resumed.step() == (2, "")        # undamaged
    draw = random.Random(17)
    for name in files(resumed.newest):
        for kind, damage in (CONTENT | KIND).items():
            resumed.afresh()
            before = (resumed.newest / name).read_bytes()
            damage(resumed.newest / name, draw)
            if kind in CONTENT and (resumed.newest / name).read_bytes() == before:
                continue
            step, reason = resumed.step()
            assert step == 1, (name, kind)
            assert name in reason or name == MANIFEST, (name, kind, reason)


@EACH
def test_nonsense_under_a_manifest_that_agrees(resumed: Resumed) -> None:
    """What only shows when the files are understood: some of it not even then, as another value of a weight; but nothing else happens."""
    draw, found = random.Random(18), []
    for name in sorted(set(files(resumed.newest)) - {MANIFEST}):
        for kind, damage in CONTENT.items():
            for _ in range(6 if kind in ("flipped", "swapped") else 1):
                resumed.afresh()
                damage(resumed.newest / name, draw)
                resumed.seal()
                assert damage_in(resumed.newest) is None
                step, reason = resumed.step()
                if step == 0:       # of a value that may have been another recipe's
                    assert name == FACTS, (name, kind, reason)
                    assert CHANGED in reason or "is no recipe of this version" in reason
                    continue
                # a table of contents may point to what cannot be read in a shard file, which is what is named then
                named = (name, ".distcp") if name.endswith(".metadata") else (name,)
                assert not reason or any(Path(one).name in reason for one in named), (name, kind, reason)
                assert step == 1 or kind in ("flipped", "swapped") or (kind == "longer" and name.endswith((".distcp", ".metadata")))
                found.append(step)
    assert found.count(1) > 25


def set_in(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def keys_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each key, however deep, that JSON holds."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from keys_of(inner, (*path, key))


DEEP = "DEEP"
VALUES = [None, True, 7, -1, 2**200, 0.5, math.nan, math.inf, "x", "", [], [[1]], {}, {"x": 1}, DEEP]


def dumped(value: Any) -> str:
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 5000 + "]" * 5000)


def kind_of(value: Any) -> type:
    return type(None) if value is None else float if type(value) is int else type(value)


@pytest.mark.all        # the larger grid of the kinds above
@pytest.mark.parametrize("resumed", ["fsdp"], indirect=True)
def test_any_value_in_the_place_of_any_other(resumed: Resumed) -> None:
    """Of the wrong type: it is damage.  In the recipe it may have been another version's, and is refused key by key, or of no matter."""
    sound = json.loads((resumed.newest / FACTS).read_text())
    draw = random.Random(19)
    paths = list(keys_of(sound))
    ours = [path for path in paths if path[0] != "recipe"]
    theirs = draw.sample([path for path in paths if path[0] == "recipe" and len(path) > 1], 25)
    resumed.afresh()
    for path in [*ours, ("recipe",), *theirs]:
        for new in draw.sample(VALUES, 3 if path in ours else 1):
            facts = json.loads(json.dumps(sound))
            set_in(facts, path, new)
            if not (resumed.folder / NEWER).exists():
                resumed.afresh()
            (resumed.newest / FACTS).write_text(dumped(facts))
            resumed.seal()
            old = sound
            for key in path:
                old = old[key]
            step, reason = resumed.step()
            if step == 0:
                assert path[0] in ("recipe", "data"), (path, new)
                assert CHANGED in reason
                continue
            may_be_null = path in (("best",), ("guard", "scale"))
            if path in ours and kind_of(new) is not kind_of(old) and not (may_be_null and new is None) and path != ("guard", "scale"):
                assert step == 1, (path, new)
            assert not reason or FACTS in reason, reason
    for path in ours:               # a key that is gone, or there twice
        for text in ("", f'"{path[-1]}": 1, "{path[-1]}": 1'):
            facts = json.loads(json.dumps(sound))
            holder = facts
            for key in path[:-1]:
                holder = holder[key]
            if not isinstance(holder, dict):
                continue
            del holder[path[-1]]
            if text:
                holder["TWICE"] = 1
            resumed.afresh()
            (resumed.newest / FACTS).write_text(json.dumps(facts).replace('"TWICE": 1', text))
            resumed.seal()
            step, reason = resumed.step()
            if text:
                assert (step, "is given twice" in reason) == (1, True), path
            elif len(path) == 1 and path[0] in ("step", "data", "recipe", "engine", "world_size", "format"):
                assert step == 1, path


@pytest.mark.parametrize("resumed", ["fsdp"], indirect=True)
def test_any_value_in_a_manifest(resumed: Resumed) -> None:
    sound = json.loads((resumed.newest / MANIFEST).read_text())
    draw = random.Random(20)
    resumed.afresh()
    for path in keys_of(sound):
        for new in ["GONE", *(VALUES if len(path) == 1 else draw.sample(VALUES, 2))]:
            manifest = json.loads(json.dumps(sound))
            set_in(manifest, path, new)
            if new == "GONE":
                holder = manifest
                for key in path[:-1]:
                    holder = holder[key]
                del holder[path[-1]]
            if not resumed.newest.exists():
                resumed.afresh()
            (resumed.newest / MANIFEST).write_text(dumped(manifest))
            step, reason = resumed.step()
            assert step == 1, (path, new, reason)
            assert MANIFEST in reason or (len(path) > 1 and path[1] in reason) or "has format" in reason, (path, new, reason)


@pytest.mark.parametrize("resumed", ["fsdp"], indirect=True)
def test_files_of_another_checkpoint_under_a_manifest_that_agrees(resumed: Resumed) -> None:
    """Facts of another step, weights of another model."""
    shutil.copy(resumed.folder / OLDER / FACTS, resumed.newest / FACTS)
    resumed.seal()
    assert resumed.step() == (1, f"{FACTS} says that it is of step 1")
    for name in (WEIGHTS, EMA_WEIGHTS):
        resumed.afresh()
        save_file({"norm.weight": torch.zeros(3)}, resumed.newest / name)
        resumed.seal()
        assert resumed.step() == (1, f"{name} does not hold the tensors of state/.metadata")
    resumed.afresh()
    (resumed.newest / WEIGHTS).unlink()
    manifest = json.loads((resumed.newest / MANIFEST).read_text())
    del manifest["files"][WEIGHTS]
    write_json(resumed.newest / MANIFEST, manifest)
    assert resumed.step() == (1, f"{MANIFEST} does not name {WEIGHTS}")


@pytest.mark.parametrize("resumed", ["fsdp"], indirect=True)
def test_without_a_whole_one_the_run_does_not_begin_anew(resumed: Resumed) -> None:
    """The newest is named in the sentence too, also if what is wrong shows only when its tensors are read."""
    resumed.afresh()
    shutil.rmtree(resumed.folder / OLDER)
    shard = next(path for path in (resumed.newest / "state").glob("*.distcp"))
    shard.write_bytes(bytes(shard.stat().st_size))
    resumed.seal()
    assert fault_in(resumed.newest) is None
    step, reason = resumed.step()
    assert step == 0
    assert re.search(rf"no checkpoint is whole .*{shard.name}: '.*' cannot be read \(\w+", reason)
    assert [path.name for path in resumed.folder.iterdir()] == [f"damaged-{NEWER}"]


def test_the_same_values_come_out(written: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """What was restored after a failed attempt is the older checkpoint, nothing of the damaged one."""
    with joined(recipe_of(written("fsdp")).parallel, RankInfo()) as world:
        run = Resumed(written("fsdp"), world, caplog)
        with run.one.stream:
            shards = sorted((run.newest / "state").glob("*.distcp"))
            shards[-1].write_bytes(bytes(shards[-1].stat().st_size))        # the first one is read before it
            run.seal()
            assert run.step()[0] == 1
            found = {name: value.clone() for name, value in run.one.engine.tensors().items()}
            run.afresh()
            shutil.rmtree(run.newest)
            start = find_start(run.one.recipe, run.one.prepared, run.lease, False)
            restore(start, run.one.engine, run.one.ema, run.one.stream)
            assert all(torch.equal(value, found[name]) for name, value in run.one.engine.tensors().items())
        run.lease.release()
