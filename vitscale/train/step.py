"""One optimizer step over a global batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.data import MicroBatch, StepBatch, augment, mix
from vitscale.data.batch import moved
from vitscale.observe.meters import Meters
from vitscale.parallel.engine import Engine
from vitscale.recipe import Augment

Objective = Callable[[Tensor, Tensor], Tensor]      # logits (b, classes), labels (b,) or targets (b, classes) -> losses (b,)


@dataclass(frozen=True)
class StepResult:
    """The same on every rank."""

    loss: float             # mean over the global batch
    grad_norm: float        # before clipping
    applied: bool           # False: loss or gradient was not finite, the weights are as before
    stop: bool              # some rank was asked to stop
    bad: int                # samples of the batch that could not be read, over all ranks


def device_inputs(micro: MicroBatch, device: torch.device, settings: Augment) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """images (b, C, S, S) fp32 augmented and normalised, labels (b,) or targets (b, classes), weight (b,), keep (2L, b) or None, on the
    device."""
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    images = augment.apply(move(micro.images), move(micro.flip), settings.mean, settings.std,
                           ops=moved(micro.ops, move), erase=moved(micro.erase, move))
    labels = move(micro.labels if micro.targets is None else micro.targets)
    weight, mixing = move(micro.weight), moved(micro.mix, move)
    if mixing is not None:
        images, labels = mix.apply(images, labels, weight, mixing)
    return images, labels, weight, None if micro.keep is None else move(micro.keep)


def train_step(
    engine: Engine, batch: StepBatch, objective: Objective, settings: Augment, lr: float, stop: bool, bad: int, meters: Meters,
) -> StepResult:
    """Forward and backward of every micro-batch, one update, and one small exchange of what all ranks must know.

    The denominator is the size of the global batch by the index, known to every rank.  A rank's loss is its local sum times the world
    size over it, so that averaging gradients over ranks is exact for uneven shares, masked samples and accumulation.  `stop` and
    `bad` (samples of this rank that could not be read) travel with the loss.
    """
    world = engine.world
    engine.model.train()
    total = torch.zeros((), device=world.device)
    for number, micro in enumerate(batch.micro):
        with meters.phase("h2d"):
            images, labels, weight, keep = device_inputs(micro, world.device, settings)
        with meters.phase("compute"), engine.micro_step(last=number == len(batch.micro) - 1):
            losses = objective(engine.forward(images, keep), labels)
            # where, not a product: a dummy's loss must not count even if it is not finite
            loss = torch.where(weight > 0, losses * weight, 0.0).sum()
            engine.backward(loss * (world.size / batch.size))
            total += loss.detach()
    with meters.phase("optimizer"):
        engine.set_lr(lr)
        update = engine.step()
        known = torch.tensor([stop, bad], dtype=torch.float64).to(world.device, non_blocking=True)
        mean_loss, votes, all_bad = world.sum_(torch.cat([total.double()[None] / batch.size, known])).tolist()
    return StepResult(mean_loss, update.grad_norm, update.applied, votes > 0, int(all_bad))
