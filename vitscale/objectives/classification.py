"""How wrong a classification is, sample by sample."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale.models import Backbone, build_model
from vitscale.objectives.task import Seen, Task
from vitscale.recipe.objectives import Classification
from vitscale.recipe.schema import Model

Loss = Literal["cross_entropy", "binary_cross_entropy"]


class Classifying(Task):
    """Which class, or which of several."""

    objective: Classification

    def __init__(self, model: Model, objective: Classification) -> None:
        self.model, self.objective = model, objective

    def build(self) -> Backbone:
        return build_model(self.model)

    def losses(self, output: Tensor, seen: Seen) -> Tensor:
        """output (b, classes) logits.  Raises ValueError for another number of classes."""
        if output.shape[-1] != self.model.classes:
            raise ValueError(f"wants logits of {self.model.classes} classes, got {output.shape[-1]}")
        return per_sample_loss(output, seen.labels, self.objective.loss, self.objective.label_smoothing)

    def evaluation_losses(self, output: Tensor, seen: Seen) -> Tensor:
        """The negative log-likelihood of the label, whatever is trained with: no smoothing, no mixing, no teacher, no sum over sigmoids.
        Only where a sample may have several labels is it the mean binary cross-entropy of the classes."""
        return per_sample_loss(output, seen.labels, "cross_entropy" if seen.labels.ndim == 1 else "binary_cross_entropy")

    def hits(self, output: Tensor, seen: Seen, k: int) -> Tensor | None:
        """(b,) bool: is the label, or any of several, among the k likeliest classes?  A sample without labels is a miss.  None: k is 5, and
        there are no more classes than that."""
        right = topk_correct if seen.labels.ndim == 1 else multilabel_hits
        return right(output, seen.labels, k) if k == 1 or self.model.classes > k else None


def per_sample_loss(logits: Tensor, labels: Tensor, loss: Loss = "cross_entropy", label_smoothing: float = 0.0) -> Tensor:
    """logits (B, C), labels (B,) int64 or soft (B, C) float -> losses (B,), computed in fp32 whatever the logits' type.

    * `cross_entropy`: minus the sum over classes of target x log-softmax.
    * `binary_cross_entropy`: each class for itself through a sigmoid, then the mean (not the sum) over classes, as in
      Wightman et al. 2021 (ResNet strikes back, section 2) and Touvron et al. 2022 (DeiT III).
    * `label_smoothing` s: targets become (1 - s) x target + s / C (Szegedy et al. 2016, section 7).

    Raises ValueError when the shapes do not belong together.
    """
    if logits.ndim != 2 or labels.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(f"wants logits (B, C) with labels (B,) or (B, C), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    logits = logits.float()
    if labels.ndim == 2:
        labels = labels.float()
    if loss == "cross_entropy":
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    classes = logits.shape[1]
    # not one_hot, which looks at the labels on the host
    targets = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0) if labels.ndim == 1 else labels
    targets = (1 - label_smoothing) * targets + label_smoothing / classes
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Is the label among the k largest logits?  logits (B, C), labels (B,) int64 -> (B,) bool.

    Of equal logits the lower class number comes first, as in argmax; so the answer is the same on every device.  NaN beats every
    number, and a label whose own logit is NaN is wrong, unless k covers all classes.
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = ~(logits <= own) | ((logits == own) & (classes < labels[:, None]))
    return (ahead.sum(dim=1) < k) | (k >= logits.shape[1])


def multilabel_hits(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Is any of the labels among the k largest logits?  (hits@k)  logits (B, C), targets (B, C), above 0 at the labels -> (B,) bool.

    Ties and NaN are told apart as by topk_correct, with which it agrees where a sample has one label.  Never true of a sample without.
    """
    first = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]        # NaN before every number
    labels = (targets > 0) & (~logits.isnan() | (k >= logits.shape[1]))
    return labels.gather(1, first).any(dim=1)
