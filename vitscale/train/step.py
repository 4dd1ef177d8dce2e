"""One optimizer step over a global batch."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitscale.data import MicroBatch, StepBatch, augment, mix
from vitscale.data.batch import moved
from vitscale.objectives import Coupled, Seen, Task
from vitscale.observe.meters import Meters
from vitscale.parallel.engine import Engine
from vitscale.recipe import Augment
from vitscale.train.pace import Probe


@dataclass(frozen=True)
class StepResult:
    """The same on every rank."""

    loss: float             # mean over the global batch
    grad_norm: float        # before clipping
    applied: bool           # False: loss or gradient was not finite, the weights are as before
    stop: bool              # some rank was asked to stop
    save: bool              # rank 0 says that a checkpoint is due by time
    bad: int                # samples of the batch that could not be read, over all ranks
    own_s: tuple[float, ...]        # of each rank: seconds before its first exchange with others, or what of them can be told apart
    probe_s: tuple[float, ...]      # of each rank: seconds of the probe; empty in a step without
    numbers: Mapping[str, float]    # of the objective besides the loss, by column: means over the global batch


Moved = tuple[Seen, Tensor, Tensor | None]


@dataclass
class Surveyed:
    """What was done of a step before the first of its losses: Coupling.of_step()."""

    coupled: Sequence[Coupled | None]       # of each micro-batch: what its losses are told
    moved_s: float = 0.0    # seconds in which what it looked at was moved
    own_s: float = 0.0      # and in which it was looked at, by this rank alone where a forward pass is
    output: Any = None      # the model's of the only micro-batch, with its graph, if the survey has asked for it


class Inputs:
    """Brings micro-batches to the device: the first of a step during the step before, if there is a `peek` to tell it.

    When a host has handed a step's work to a GPU, it waits for its end.  What the next step begins with is copied and augmented in that
    time, behind the work under way, so that the GPU does not wait for the host in turn.
    """

    def __init__(self, device: torch.device, settings: Augment, peek: Callable[[], MicroBatch | None] | None = None) -> None:
        """peek: the first micro-batch of the next step, if it is there (Stream.peek)."""
        self._device, self._settings, self._peek = device, settings, peek
        self._ahead: tuple[MicroBatch, Moved] | None = None

    def of(self, micro: MicroBatch, again: bool = False) -> Moved:
        """device_inputs() of it.  again: they are kept, for they will be asked for once more before any others."""
        ahead, self._ahead = self._ahead, None
        found = ahead[1] if ahead is not None and ahead[0] is micro else device_inputs(micro, self._device, self._settings)
        if again:
            self._ahead = micro, found
        return found

    def look_ahead(self, last: bool) -> None:
        """A micro-batch's work, the `last` of the step perhaps, has been handed to the device."""
        if self._peek is None:
            return
        micro = self._peek()
        if last and micro is not None:
            self._ahead = micro, device_inputs(micro, self._device, self._settings)


def device_inputs(micro: MicroBatch, device: torch.device, settings: Augment) -> Moved:
    """What the task sees, weight (b,), keep (2L, V b) or None, on the device; images are augmented and normalised."""
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    both = [[augment.apply(move(view.images), move(view.flip), settings.mean, settings.std,
                           ops=moved(view.ops, move), erase=moved(view.erase, move)) for view in micro.views if view.anchor is anchor]
            for anchor in (False, True)]
    (images, *more), anchors = both
    labels = move(micro.labels if micro.targets is None else micro.targets)
    weight, mixing = move(micro.weight), moved(micro.mix, move)
    if mixing is not None:
        images, labels = mix.apply(images, labels, weight, mixing)
    draws = None if micro.draws is None else move(micro.draws)
    seen = Seen(images, labels, draws, tuple(more), tuple(anchors), on_host=None if micro.draws is None else micro.draws.numpy())
    return seen, weight, None if micro.keep is None else move(micro.keep)


def sync_inputs(engine: Engine, seen: Seen, weight: Tensor) -> tuple[Seen, Tensor]:
    """The samples as every rank that is given them sees them."""
    images, labels, weight, *more = engine.sync_inputs(seen.images, seen.labels, weight, *seen.more, *seen.anchors)
    count = len(seen.more)
    return dataclasses.replace(seen, images=images, labels=labels, more=tuple(more[:count]), anchors=tuple(more[count:])), weight


def train_step(engine: Engine, batch: StepBatch, task: Task, inputs: Inputs, lr: float, stop: bool, bad: int, meters: Meters,
               probe: Probe | None = None, save: bool = False, surveyed: Surveyed | None = None) -> StepResult:
    """Forward and backward of every micro-batch, one update, and one small exchange of what all ranks must know.

    The denominator is the size of the global batch by the index, known to every rank.  A rank's loss is its local sum times the number
    of shares over it, so that averaging gradients over ranks is exact for uneven shares, masked samples and accumulation.  `stop`,
    `save` and `bad` (samples of this rank that could not be read) travel with the loss, and so do the times that each rank takes by
    itself: waiting for data, moving it, the forward pass where that waits for nobody, and the `probe`, if there is one (on all ranks or
    on none).  `surveyed`: of a task with a coupling, what that found.
    """
    world = engine.world
    engine.model.train()
    total, told = torch.zeros((), device=world.device), dict[str, Tensor]()
    moved_s, forward_s = (surveyed.moved_s, surveyed.own_s) if surveyed else (0.0, 0.0)
    probe_s = probe.seconds() if probe else 0.0
    for number, micro in enumerate(batch.micro):
        with meters.phase("h2d"):
            started = time.perf_counter()
            seen, weight, keep = inputs.of(micro)
            moved_s += time.perf_counter() - started
        last = number == len(batch.micro) - 1
        with meters.phase("compute"), engine.micro_step(last):
            started = time.perf_counter()
            seen, weight = sync_inputs(engine, seen, weight)
            if surveyed is not None:
                seen = dataclasses.replace(seen, coupled=surveyed.coupled[number])
            losses, numbers = _answered(task, asked(engine, task, seen, keep, surveyed), seen)
            loss = _sum(losses, weight)
            forward_s += time.perf_counter() - started
            meters.mark_progress()        # so that a watchdog can tell who computes from who waits in the reduction
            engine.backward(loss * (world.data_size / batch.size))
            total += loss.detach()
            for column, values in numbers.items():
                told[column] = told.get(column, 0.0) + _sum(values, weight)
        with meters.phase("h2d"):
            inputs.look_ahead(last)
    with meters.phase("optimizer"):
        engine.set_lr(lr)
        own_s = meters.so_far("data_wait") + moved_s + (forward_s if engine.is_forward_local else 0.0)
        times = torch.zeros(1 + (probe is not None), world.size, dtype=torch.float64)      # the sum over ranks puts them side by side
        times[:, world.rank] = torch.tensor([own_s, probe_s][: len(times)])
        known = torch.cat([torch.tensor([stop, save, bad]), times.flatten()]).to(world.device, non_blocking=True)
        own = torch.stack([one.double() for one in (total, *told.values())]) / batch.size * world.leads
        read: list[float] = []

        def with_all_else(norm: Tensor) -> float:
            with meters.phase("communication"):     # by now a device has come to its end, so that this is the wait for other ranks
                summed = world.sum_(torch.cat([own, known]))
                *others, found = torch.cat([summed, norm.to(summed).reshape(1)]).tolist()
            read.extend(others)
            return found

        update = engine.step(with_all_else)
    mean_loss, *rest = read
    means, (votes, save_votes, all_bad, *all_s) = rest[:len(told)], rest[len(told):]
    return StepResult(mean_loss, update.grad_norm, update.applied, votes > 0, save_votes > 0, int(all_bad),
                      own_s=tuple(all_s[:world.size]), probe_s=tuple(all_s[world.size:]), numbers=dict(zip(told, means, strict=True)))


def asked(engine: Engine, task: Task, seen: Seen, keep: Tensor | None, surveyed: Surveyed | None) -> Any:
    """The model's output, which a survey may have asked for already."""
    if surveyed is not None and surveyed.output is not None:
        output, surveyed.output = surveyed.output, None     # it is kept no longer than it is needed
        return output
    images, *more = task.inputs(seen)
    return engine.forward(images, keep, *more)


def _answered(task: Task, output: Any, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (b,) and what else the objective tells of a step.  `output` is kept no longer: backward has use for its memory."""
    losses, training = task.losses(output, seen), task.numbers.training
    if not training:
        return losses, {}
    with torch.no_grad():
        return losses, task.measured(training, output, seen)


def _sum(values: Tensor, weight: Tensor) -> Tensor:
    """Of values (b,) of samples that count.  Where, not a product: a dummy's loss must not count even if it is not finite."""
    return torch.where(weight > 0, values * weight, 0.0).sum()
