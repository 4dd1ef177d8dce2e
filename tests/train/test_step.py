"""A step of training by itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitscale.data import open_index, open_stream, pack_digits
from vitscale.objectives import Seen, build_task
from vitscale.observe.meters import Meters
from vitscale.optim.build import build_optimizer
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.world import World
from vitscale.recipe import load_recipe
from vitscale.train import step as module
from vitscale.train.step import Inputs, train_step


def losses(folder: Path, micro_batch: int, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[int]]:
    """Of six steps, with inputs of the next step brought to the device ahead or not; and how many inputs were brought in each."""
    recipe = load_recipe("quickstart", [
        f"data.train={folder}/train-*.tar", "data.prepare=null", "model.width=16", "model.heads=2", "model.mlp=24", "model.depth=2",
        "global_batch=16", "data.lanes=16", "parallel.device=cpu"])
    world = World(0, 1, 0, 1, torch.device("cpu"), None)
    task, meters, found, brought = build_task(recipe.model, recipe.objective), Meters(), [], []
    moved: list[Any] = []
    real = module.device_inputs
    monkeypatch.setattr(module, "device_inputs", lambda micro, *more: (moved.append(micro), real(micro, *more))[1])
    engine = open_engine(recipe.parallel, world, Work(micro_batch, 16 // micro_batch, None))
    engine.adopt(model := engine.materialise(task.build, lambda name, shape: torch.full(shape, 0.01)), build_optimizer(model, recipe.optim))
    with open_stream(recipe, open_index(recipe.data.train), rank=0, world=1, micro_batch=micro_batch, on_request=ahead) as stream:
        inputs = Inputs(world.device, recipe.data.augment, stream.peek if ahead else None)
        meters.begin()
        for _ in range(6):
            batch = next(stream)
            while ahead and stream.peek() is None:        # so that it is there when the step looks for it
                pass
            before = len(moved)
            found.append(train_step(engine, batch, task, inputs, 1e-2, False, 0, meters).loss)
            brought.append(len(moved) - before)
    monkeypatch.undo()
    return found, brought


@pytest.mark.parametrize("micro_batch", [16, 4])
def test_inputs_brought_ahead_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    pack_digits(tmp_path)
    wanted, plain = losses(tmp_path, micro_batch, False, monkeypatch)
    found, brought = losses(tmp_path, micro_batch, True, monkeypatch)
    count = 16 // micro_batch
    assert found == wanted
    assert plain == [count] * 6
    assert brought == [count + 1] + [count] * 5         # each step its own but the first, and the first of the next


def test_inputs_of_a_batch_that_does_not_come_are_dropped(tmp_path: Path) -> None:
    """As after a rollback."""
    pack_digits(tmp_path)
    recipe = load_recipe("quickstart", [f"data.train={tmp_path}/train-*.tar", "data.prepare=null", "global_batch=16", "data.lanes=16"])
    with open_stream(recipe, open_index(recipe.data.train), rank=0, world=1, micro_batch=16) as stream:
        first, second = next(stream).micro[0], next(stream).micro[0]
        inputs = Inputs(torch.device("cpu"), recipe.data.augment, lambda: second)
        inputs.look_ahead(last=True)
        for micro in (first, second):
            assert torch.equal(inputs.of(micro)[0].labels, micro.labels)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_is_the_mean_over_the_samples_that_count(tmp_path: Path, micro_batches: int) -> None:
    """Against plain torch: the places of a batch that no sample fills have weight 0 and a loss."""
    recipe = load_recipe("quickstart", ["model.width=16", "model.heads=2", "model.mlp=24", "model.depth=1", "data.prepare=null",
                                        "parallel.device=cpu", "optim.name=sgd", "optim.betas=[0.0, 0.9]", "optim.weight_decay=0"])
    world, task, generator = World(0, 1, 0, 1, torch.device("cpu"), None), build_task(recipe.model, recipe.objective), torch.Generator()
    engine = open_engine(recipe.parallel, world, Work(4, micro_batches, None))
    value_of = lambda name, shape: torch.randn(shape, generator=generator.manual_seed(len(name))) / 10     # noqa: E731
    engine.adopt(model := engine.materialise(task.build, value_of), build_optimizer(model, recipe.optim))
    size = 4 * micro_batches - 1        # the last place is empty
    images = torch.rand(4 * micro_batches, recipe.model.channels, recipe.model.image, recipe.model.image, generator=generator)
    labels = torch.arange(4 * micro_batches) % recipe.model.classes
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    wanted = torch.nn.functional.cross_entropy(model(images[:size]), labels[:size])
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    images[size] = 50
    weight = (torch.arange(4 * micro_batches) < size).float()
    inputs = ((Seen(images[at:at + 4], labels[at:at + 4]), weight[at:at + 4], None) for at in range(0, 4 * micro_batches, 4))
    given = SimpleNamespace(of=lambda _: next(inputs), look_ahead=lambda _: None)
    meters = Meters()
    meters.begin()
    result = train_step(engine, SimpleNamespace(micro=[None] * micro_batches, size=size), task, given, 0.5, False, 0, meters)
    assert result.loss == pytest.approx(wanted.item(), rel=1e-5)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert torch.allclose(parameter, before[name] - 0.5 * gradient, rtol=1e-4, atol=1e-6), name
