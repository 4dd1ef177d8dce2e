"""What needs no labels is learned: a few steps on real images beat chance on others that were not seen."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from vitscale.models import initialise
from vitscale.objectives import Seen, Task, build_task
from vitscale.recipe import Vit
from vitscale.recipe.objectives import Inpainting, Jigsaw, Mae, MaeDecoder, Objective, Rotation

MODEL = Vit(width=32, depth=2, heads=2, mlp=64, patch=2, image=8, channels=1)


def digits(training: bool) -> Tensor:
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    return images[:1400] if training else images[1400:]


def seen_of(task: Task, images: Tensor, seed: int) -> Seen:
    draws = torch.rand(len(images), task.num_draws, generator=torch.Generator().manual_seed(seed))
    return Seen(images, torch.zeros(len(images), dtype=torch.int64), draws)


def judge(task: Task, model: torch.nn.Module) -> dict[str, float]:
    """Means over the images that are not trained on."""
    seen = seen_of(task, digits(training=False), seed=-1)
    with torch.no_grad():
        images, *more = task.inputs(seen)
        output = model(images, None, *more)
        return {"loss": task.losses(output, seen).mean().item()} | {
            name: value.float().mean().item() for name, value in task.measured(task.numbers.evaluation, output, seen).items()}


@pytest.mark.parametrize(("objective", "steps", "chance", "reached"), [
    (Mae(name="mae", decoder=MaeDecoder(width=16, depth=1, heads=2)), 150, None, 0.65),
    (Inpainting(name="inpainting", mask_patch=2), 150, None, 0.6),
    (Rotation(name="rotation"), 150, 1 / 4, 0.5),
    (Jigsaw(name="jigsaw", permutations=6), 200, 1 / 6, 0.5),
], ids=lambda value: getattr(value, "name", None))
def test_better_than_chance(objective: Objective, steps: int, chance: float | None, reached: float) -> None:
    """Of hidden pixels: `reached` is below the error of the mean colour; of changes: an accuracy well above chance."""
    task = build_task(MODEL, objective)
    model = task.build()
    initialise(model, 0)
    optimizer, images = torch.optim.AdamW(model.parameters(), lr=3e-3), digits(training=True)
    before = judge(task, model)
    for step in range(steps):
        rows = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        seen = seen_of(task, images[rows], seed=step)
        given, *more = task.inputs(seen)
        loss = task.losses(model(given, None, *more), seen).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = judge(task, model)
    if chance is None:
        assert after["loss"] < reached < before["loss"]
        assert after.keys() == {"loss"}
    else:
        assert before["eval_top1"] == pytest.approx(chance, abs=0.06)
        assert after["eval_top1"] > reached
        assert after["loss"] < 0.9 * before["loss"]
