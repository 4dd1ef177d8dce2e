"""Accuracy and loss on the validation shards, exact on any number of ranks."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch

from vitscale.data import MicroBatch
from vitscale.metrics.system import EVALUATED_IMAGES, EVALUATION_LOSS
from vitscale.parallel.engine import Engine
from vitscale.recipe import Augment
from vitscale.recipe.schedules import Now
from vitscale.resilience.signals import StopFlag
from vitscale.train.coupling import Coupling
from vitscale.train.features import Features
from vitscale.train.step import device_inputs, sync_inputs

VOTE_EVERY = 8      # batches between two questions whether to leave: an evaluation takes minutes, who preempts a job gives it seconds


class EvaluationLeft(Exception):
    """Some rank was asked to stop; all have left the evaluation at the same batch."""


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[MicroBatch], coupling: Coupling, now: Now, augment: Augment, stop: StopFlag,
             features: Features | None = None) -> dict[str, float]:
    """By column: how many images are readable and, over each of them once, the means of the loss and of what the task tells besides.

    Without a readable sample the means are NaN.  features: what is to be told of these besides.
    Every rank must be given the same number of batches (masked ones among them): sharded engines communicate in the forward pass.
    Raises EvaluationLeft, on all ranks alike, soon after `stop` is set on one.
    """
    world, task = engine.world, coupling.task
    engine.model.eval()
    columns, sums = [EVALUATED_IMAGES.column, EVALUATION_LOSS.column], torch.zeros(2, dtype=torch.float64, device=world.device)
    for number, micro in enumerate(batches):
        if number % VOTE_EVERY == 0 and world.any(bool(stop)):
            raise EvaluationLeft
        seen, weight, _ = device_inputs(micro, world.device, augment)
        seen, weight = sync_inputs(engine, seen, weight)
        seen = replace(seen, coupled=coupling.of_evaluation(seen, now))
        images, *more = task.inputs(seen)
        output = engine.forward(images, None, *more)
        told = task.measured(task.numbers.evaluation, output, seen)
        if features is not None:
            features.add(task.features(output, seen), seen.labels, weight, micro.index, micro.masks)
        counted = weight > 0
        values = torch.stack([value.double() for value in (weight, task.evaluation_losses(output, seen), *told.values())])
        if len(sums) < len(values):     # the first batch shows what the task tells
            columns += told
            sums = sums.new_zeros(len(values))
        sums += torch.where(counted, values, 0.0).sum(dim=1)     # not a product: a dummy's loss must not count even if it is not finite
    count, *totals = world.sum_over_samples(sums).tolist()
    means = [total / count if count else math.nan for total in totals]
    judged = {} if features is None else features.numbers(world)
    return dict(zip(columns, [count, *means], strict=True)) | judged
