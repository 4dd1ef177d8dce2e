"""Self-distillation's steps are those of one process on every number of ranks, engine and micro-batch: losses, gradients, student, teacher,
centre and optimizer to within 1e-5 of each tensor's largest number, with places that are jittered and a frozen anchor that is sharded."""

import functools
import io
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from host_reads import HostReads
from numpy.typing import NDArray
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from vitscale.checkpoint.load import Loaded
from vitscale.data import MicroBatch, open_index, open_stream
from vitscale.data.transform import Transform
from vitscale.export.folder import write_safetensors
from vitscale.models import build_model, initial_value
from vitscale.objectives import build_task
from vitscale.observe.meters import Meters
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.optim.schedule import Schedule
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined
from vitscale.recipe import Parallel, Recipe
from vitscale.recipe.load import check_recipe
from vitscale.recipe.schema import Augment, ViewSet, Vit
from vitscale.train.coupling import Coupling
from vitscale.train.step import Inputs, train_step
from vitscale.train.teacher import give_teacher

COUNT, BAD, STEPS = 44, (7, 20), 10     # four steps of 10 and one of 4 are an epoch
SOON = 6                                # that many steps go over its end, and past the rest of the prototypes
VIEWS = [
    {"name": "first", "augment": {"scale": [0.4, 1], "color_jitter": [0.4, 0.4, 0.2, 0.1], "color_jitter_prob": 0.8, "grey": 0.2,
                                  "blur": 1.0}},
    {"name": "second", "augment": {"scale": [0.4, 1], "blur": 0.1, "solarize": 0.2}},
    {"name": "local", "count": 3, "image": 8, "augment": {"scale": [0.05, 0.4], "blur": 0.5}},
]


def write(folder: Path) -> str:
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number in range(shard, COUNT, 2):
                picture = np.random.Generator(np.random.Philox(number)).integers(0, 256, (6, 7, 3), np.uint8)
                picture = cv2.resize(picture, (40, 36), interpolation=cv2.INTER_CUBIC)
                data = b"garbage" if number in BAD else cv2.imencode(".png", picture)[1].tobytes()
                info = tarfile.TarInfo(f"{number:04d}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"{folder}/s-*.tar"


# the colder a teacher, the more its answers hang on the last digits of its logits: at 0.04 gradients are up to 1.1e-5 apart
SMALL = {"prototypes": 24, "hidden": 12, "bottleneck": 8, "momentum": 0.9, "rest_prototypes": "2 steps",
         "teacher_temp": {"start": 0.06, "end": 0.08, "over": "8 steps", "shape": "linear"}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "average": {"name": "dino", **SMALL}, "sinkhorn": {"name": "dino", **SMALL, "centring": "sinkhorn"},
    "ibot": {"name": "ibot", **SMALL, "mask_share": [0.1, 0.6]},
    "dinov3": {"name": "dinov2", **SMALL, "patch_prototypes": 20, "koleo": 0.3, "koleo_group": 2, "gram": 2.0, "gram_image": 24},
    "lejepa": {"name": "lejepa", "sigreg": 0.3, "directions": 8, "embedding": 6, "hidden": 12},
}


# jittered places, and an anchor of another width and patch, normalised otherwise, that sees more pixels of the same cuts
TURNED = {"position": "rotary", "rope_shift": 0.1, "rope_jitter": 1.2, "rope_rescale": 2.0}
ANCHOR = {"width": 12, "depth": 2, "heads": 2, "mlp": 20, "image": 24, "patch": 3, "classes": 0}


def write_anchor(folder: Path) -> None:
    section = Vit(**ANCHOR)
    model = build_model(section)
    for name, parameter in model.named_parameters():
        parameter.data = first_value(model, name, parameter.shape)
    folder.mkdir()
    write_safetensors(Loaded(model, Transform(24, mean=(0.5, 0.5, 0.5), std=(0.3, 0.2, 0.25)), (), section, None, folder), folder)


def recipe_of(urls: str, objective: str = "average", **parallel: Any) -> Recipe:
    anchor = {"gram_teacher": str(Path(urls).parent / "anchor")} if objective == "dinov3" else {}
    return check_recipe({
        "name": "t", "model": {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "image": 16, "patch": 4, "classes": 0, "drop_path": 0.2,
                               **(TURNED if objective == "dinov3" else {})},
        "data": {"train": urls, "label": None, "workers": 1, "max_bad_fraction": 1.0, "views": VIEWS},
        "objective": OBJECTIVES[objective] | anchor,
        # eps: large beside the gradients' rounding errors, which Adam otherwise makes steps of; lr: gradients of one step are 1e-6 apart,
        # and what weights differ by is amplified from step to step (at 2e-3 to 1.3e-5 after ten, in one process too)
        "optim": {"lr": 5e-4, "eps": 1e-3, "weight_decay": 0.04, "weight_decay_end": 0.4, "clip_norm": 0.5},
        "global_batch": 10, "duration": f"{STEPS} steps", "seed": 5, "parallel": {"device": "cpu", **parallel},
    }, "test")


def whole(tensor: torch.Tensor) -> NDArray[np.float64]:
    """A copy, of all ranks' parts.  Collective."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().double().numpy().copy()


def in_all_steps(parts: list[torch.Tensor]) -> torch.Tensor:
    """Of each step a tensor, alike in how it is sharded -> (..., steps), so that ranks exchange them once."""
    first = parts[0]
    if not isinstance(first, DTensor):
        return torch.stack(parts, dim=-1)
    shape = torch.Size((*first.shape, len(parts)))
    return DTensor.from_local(torch.stack([one.to_local() for one in parts], dim=-1), first.device_mesh, first.placements, run_check=False,
                              shape=shape, stride=torch.empty(shape, device="meta").stride())


def first_value(skeleton: torch.nn.Module, name: str, shape: torch.Size) -> torch.Tensor:
    """Drawn wide, so that answers differ from the start."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, name))))
    return initial_value(skeleton, name, shape, 1) + (0.2 if len(shape) > 1 else 0.05) * noise


Told = dict[str, Any]
Alone = Callable[[str, int], Told]


class Late(Inputs):
    """Of a rank that takes a while to move what is surveyed."""

    def of(self, micro: MicroBatch, again: bool = False) -> Any:
        if again:
            time.sleep(LATE_S)
        return super().of(micro, again)


def train(world: World, recipe: Recipe, micro_batch: int, steps: int, late: bool = False) -> Told:
    """As train/run.py does it; the first so many steps.  late: rank 1 is."""
    world, index, task = replace(world, parallel=recipe.parallel), open_index(recipe.data.train), build_task(recipe.model, recipe.objective)
    share = -(-recipe.global_batch // world.data_size)
    engine = open_engine(recipe.parallel, world, Work(micro_batch, -(-share // micro_batch), recipe.optim.clip_norm))
    give_teacher(task, recipe, engine)
    with torch.device("meta"):
        skeleton = task.build()
    model = engine.materialise(task.build, lambda name, shape: first_value(skeleton, name, shape))
    rates = model.drop_rates
    engine.adopt(model, build_optimizer(model, recipe.optim))
    average = WeightAverage(engine.model)
    coupling = Coupling(task, engine, average if task.momentum else None)
    schedule = Schedule.of(recipe.optim, recipe.duration, index.num_samples, recipe.global_batch)
    inputs = (Late if late and world.rank == 1 else Inputs)(world.device, recipe.data.augment)
    meters, losses, norms, told, own_s = Meters(), [], [], [], []
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name, _ in engine.model.named_parameters()}

    def note(*_: Any) -> None:
        for name, one in engine.model.named_parameters():
            gradients[name].append(torch.zeros_like(one) if one.grad is None else one.grad.clone())

    engine.optimizer.register_step_pre_hook(note)
    passes: list[bool] = []         # of the backbone: whether with a gradient
    model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    meters.begin()
    with open_stream(recipe, index, rank=world.data_rank, world=world.data_size, micro_batch=micro_batch, drop_rates=rates,
                     num_draws=task.num_draws) as stream:
        for _ in range(steps):
            batch = next(stream)
            now = schedule.now(batch.end)
            engine.set_weight_decay(schedule.weight_decay(batch.end) / recipe.optim.weight_decay)
            with HostReads(micro.draws for micro in batch.micro if micro.draws is not None) as reads:
                surveyed = coupling.of_step(batch, inputs, now)
                result = train_step(engine, batch, task, inputs, schedule.lr(batch.end), False, 0, meters, surveyed=surveyed)
                coupling.applied(now)
            assert reads.places == ["tolist"], "once, whatever is learned and by whichever engine"
            assert result.applied
            losses.append(result.loss)
            norms.append(result.grad_norm)
            told.append(dict(result.numbers))
            own_s.append(result.own_s)
    state = engine.tensors() | coupling.tensors() | {f"ema.{name}": value for name, value in average.tensors().items()}
    frozen = [] if task.teacher is None else list(task.teacher.func.__self__.model.parameters())
    whole_gradients = np.concatenate([whole(in_all_steps(parts)).reshape(-1, steps) for parts in gradients.values()])
    return {"losses": losses, "norms": norms, "told": told, "gradients": whole_gradients,
            "frozen": [isinstance(one, DTensor) for one in frozen], "own_s": own_s,
            "passes": (passes.count(True), passes.count(False)), "state": {name: whole(value) for name, value in state.items()}}


def every(place: RankInfo, cases: list[tuple[Any, ...]]) -> list[Told]:
    with joined(Parallel(engine="fsdp", device="cpu"), place) as world:
        return [train(world, *case) for case in cases]


ALONE = World(0, 1, 0, 1, torch.device("cpu"), None)
ONCE = {"engine": "fsdp", "recompute": "blocks", "gather": "once"}
# of two ranks each objective and each engine, not all of both: (objective, parallel, micro-batch)
PAIR: list[tuple[str, dict[str, Any], int]] = [
    ("average", {"engine": "ddp"}, 2), ("sinkhorn", {"engine": "fsdp"}, 3), ("ibot", ONCE, 3), ("dinov3", {"engine": "fsdp"}, 2),
    ("dinov3", {"engine": "ddp"}, 4), ("lejepa", {"engine": "ddp"}, 5), ("lejepa", ONCE, 2), ("lejepa", {"engine": "fsdp"}, 5)]
ROUNDED: list[tuple[str, dict[str, Any], int]] = [
    ("average", {"engine": "ddp", "precision": "bf16"}, 5), ("ibot", {"engine": "fsdp", "precision": "bf16"}, 5)]
ROUNDED_STEPS = 3
LATE_S = 0.5


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_anchor(folder / "anchor")
    return write(folder)


@pytest.fixture(scope="module")
def alone(urls: str) -> Alone:
    """The first so many steps of one process whose micro-batch is the whole batch."""
    return functools.cache(lambda objective, steps: train(ALONE, recipe_of(urls, objective), 10, steps))


@pytest.fixture(scope="module")
def pair(urls: str) -> list[list[Told]]:
    """Of each of two ranks what it told of PAIR, then of ROUNDED, then of one whose second rank is late."""
    cases = [(recipe_of(urls, objective, **kind), micro, SOON) for objective, kind, micro in PAIR]
    rounded = [(recipe_of(urls, objective, **kind), micro, ROUNDED_STEPS) for objective, kind, micro in ROUNDED]
    late = (recipe_of(urls, "lejepa", engine="fsdp"), 5, 2, True)
    return run_ranks(2, every, [*cases, *rounded, late], timeout_s=600)


def apart(found: Mapping[str, NDArray[np.float64]], wanted: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Of each tensor: max |difference| / max |value|; of the optimizer's over a hundredth of the largest of its kind at
    least, for there are gradients that are nothing but rounding (LeJEPA's of its last bias)."""
    assert found.keys() == wanted.keys()
    largest: dict[str, float] = {}
    for name, one in wanted.items():
        kind = name.rpartition(".")[2] if name.startswith("optim.") else name
        largest[kind] = max(largest.get(kind, 1e-30), float(np.abs(one).max()))
    return {name: float(np.abs(found[name] - one).max()) / max(float(np.abs(one).max()), 1e-2 * largest.get(name.rpartition(".")[2], 1e-28))
            for name, one in wanted.items()}


def same(found: Told, wanted: Told) -> None:
    """To 1e-5: losses, norms and what is told of each step, its gradient by the length of the difference, and of the state at the end each
    tensor.  Not each tensor's gradient: what has cancelled out over a batch has rounding errors that are large beside it."""
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-5)
    for ours, theirs in zip(found["told"], wanted["told"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = found["gradients"], wanted["gradients"]
    gaps = np.linalg.norm(ours - theirs, axis=0) / np.linalg.norm(theirs, axis=0)
    far = apart(found["state"], wanted["state"]) | {f"gradient {step}": gap for step, gap in enumerate(gaps, 1)}
    assert not {name: f"{one:.1e}" for name, one in far.items() if one > 1e-5}


def all_same(found: list[list[Told]], cases: list[tuple[str, dict[str, Any], int]], alone: Alone, steps: int) -> None:
    for rank in found:
        for (objective, kind, _), one in zip(cases, rank, strict=True):
            same(one, alone(objective, steps))
            if objective == "dinov3":
                assert set(one["frozen"]) == {kind["engine"] == "fsdp" and len(found) > 1}


@pytest.mark.parametrize(("objective", "micro_batch"), [
    ("dinov3", 4), ("lejepa", 3), *(pytest.param(one, 3, marks=pytest.mark.all) for one in ("average", "sinkhorn", "ibot"))])
def test_accumulation_changes_nothing(urls: str, alone: Alone, objective: str, micro_batch: int) -> None:
    same(train(ALONE, recipe_of(urls, objective), micro_batch, SOON), alone(objective, SOON))


def test_one_micro_batch_is_passed_through_the_student_once(alone: Alone) -> None:
    """Views of two sizes: two passes; a teacher is shown the large ones."""
    assert alone("lejepa", SOON)["passes"] == (2 * SOON, 0)
    assert alone("average", SOON)["passes"] == (2 * SOON, SOON)


@pytest.mark.slow
def test_two_ranks_equal_one_process(pair: list[list[Told]], alone: Alone) -> None:
    """The last batch of an epoch is short, two samples cannot be read."""
    all_same([rank[:len(PAIR)] for rank in pair], PAIR, alone, SOON)


@pytest.mark.slow
def test_bf16_is_near_fp32(pair: list[list[Told]], alone: Alone) -> None:
    """Sharded weights are cast, and so is what goes in: the images of every set of views."""
    for (objective, _, _), found in zip(ROUNDED, pair[0][len(PAIR):-1], strict=True):
        wanted = alone(objective, ROUNDED_STEPS)
        assert found["losses"] == pytest.approx(wanted["losses"], rel=0.05)
        assert found["losses"] != wanted["losses"]
        for name in found["state"]:
            if name.startswith("objective."):
                assert np.abs(found["state"][name] - wanted["state"][name]).max() < 0.05


@pytest.mark.slow
def test_a_rank_that_is_late_before_a_survey_is_told_from_one_that_waits_in_it(pair: list[list[Told]]) -> None:
    """Sharded weights let all ranks wait for the slowest in a survey's forward pass; the time of the others is not theirs."""
    assert max(second - first for first, second in pair[0][-1]["own_s"]) > LATE_S / 2


@pytest.mark.all
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_equal_one_process(urls: str, alone: Alone, size: int) -> None:
    """The same of every objective with every engine and with three micro-batches, whose turns change with the number of ranks; shares are
    uneven on three and four ranks, which also form two groups (HSDP)."""
    kinds: list[dict[str, Any]] = [{"engine": "ddp"}, {"engine": "fsdp"}, ONCE]
    if size == 4:
        kinds.append({"engine": "fsdp", "replicate": 2})
    cases = [(objective, kind, (1 + (number + size) % 3) * (2 if objective == "dinov3" else 1))
             for objective in OBJECTIVES for number, kind in enumerate(kinds)]
    cases += [("lejepa", kind, -(-10 // size)) for kind in kinds]       # one micro-batch: the survey's answer is what is learned from
    found = run_ranks(size, every, [(recipe_of(urls, objective, **kind), micro, STEPS) for objective, kind, micro in cases], timeout_s=3000)
    all_same(found, cases, alone, STEPS)


def test_an_anchor_is_shown_the_same_cuts_in_colours_as_they_are(urls: str) -> None:
    plain = recipe_of(urls, "dinov3")
    quiet = [one.model_copy(update={"augment": Augment(scale=one.augment.scale)}) for one in plain.data.views if one.augment]
    steps = {}
    for name, views, changes in (("without", VIEWS, {"gram": 0.0, "gram_teacher": None, "gram_image": None}), ("fine", VIEWS, {}),
                                 ("alike", quiet, {"gram_image": None}), ("quiet", quiet, {})):
        data = plain.data.model_copy(update={"views": tuple(ViewSet.model_validate(one) for one in views)})
        recipe = plain.model_copy(update={"data": data, "objective": plain.objective.model_copy(update=changes)})
        with open_stream(recipe, open_index(recipe.data.train), rank=0, world=1, micro_batch=10, drop_rates=(0.1, 0.2),
                         num_draws=2) as stream:
            steps[name] = next(stream).micro[0]
    without, fine, alike, quieter = steps["without"], steps["fine"], steps["alike"], steps["quiet"]
    assert [view.anchor for view in fine.views] == [False, False, False, True, True]
    for ours, theirs in zip(fine.views, without.views, strict=False):
        assert torch.equal(ours.images, theirs.images), "what the model sees is no other for it"
        assert torch.equal(ours.flip, theirs.flip)
    assert fine.keep is not None
    assert fine.keep.shape == without.keep.shape
    for view, anchor, small in zip(quieter.views[:2], quieter.views[3:], alike.views[3:], strict=True):
        assert torch.equal(small.images, view.images)
        assert torch.equal(anchor.flip, view.flip)
        assert anchor.images.shape[1] == 24
        assert anchor.ops is None
        shrunk = torch.nn.functional.interpolate(anchor.images.permute(0, 3, 1, 2).float(), 16, mode="bilinear", antialias=True)
        assert (shrunk - view.images.permute(0, 3, 1, 2).float()).abs().mean() < 6
        assert (shrunk - view.images.flip(0).permute(0, 3, 1, 2).float()).abs().mean() > 30
