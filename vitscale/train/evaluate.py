"""Accuracy and loss on the validation shards, exact on any number of ranks."""

import math
from collections.abc import Iterable

import torch

from vitscale.data import MicroBatch
from vitscale.objectives.classification import multilabel_hits, topk_correct
from vitscale.parallel.engine import Engine
from vitscale.recipe import Augment
from vitscale.train.step import Objective, device_inputs


@torch.no_grad()
def evaluate(engine: Engine, batches: Iterable[MicroBatch], objective: Objective, classes: int, augment: Augment) -> dict[str, float]:
    """eval_loss (mean), eval_top1 and eval_top5 (ratios, 0..1), over all readable samples once (eval_images, their number).

    With several labels a sample top-1 is hits@1: the highest class is one of them (top-5 likewise; a sample without labels is a miss).
    Top-5 of fewer than 6 classes is left out.  Without a readable sample the values are NaN.

    Every rank must be given the same number of batches (masked ones among them): sharded engines communicate in the forward pass.
    """
    world = engine.world
    engine.model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for micro in batches:
        images, labels, weight, _ = device_inputs(micro, world.device, augment)
        logits = engine.forward(images, None)
        counted = weight > 0
        zero = torch.zeros((), device=world.device)
        sums[0] += counted.sum()
        sums[1] += torch.where(counted, objective(logits, labels), zero).sum()
        right = topk_correct if micro.targets is None else multilabel_hits
        sums[2] += (right(logits, labels, 1) & counted).sum()
        sums[3] += (right(logits, labels, min(5, classes)) & counted).sum()
    count, loss, top1, top5 = world.sum_(sums).tolist()
    per = 1 / count if count else math.nan
    result = {"eval_images": count, "eval_loss": loss * per, "eval_top1": top1 * per}
    return result | ({"eval_top5": top5 * per} if classes > 5 else {})
