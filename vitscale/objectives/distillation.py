"""Learning from a teacher's answers as well as from labels (Hinton et al. 2015; Touvron et al. 2021, DeiT, section 4)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vitscale.objectives.classification import Classifying, per_sample_loss
from vitscale.objectives.task import Companion, Frozen, Seen
from vitscale.recipe.objectives import Distillation


class Distilling(Classifying):
    """The teacher's part of the loss falls on the distillation token's logits if the model has one (DeiT), else on its only ones."""

    objective: Distillation

    def companions(self) -> tuple[Companion, ...]:
        return (Frozen(self.objective.teacher),)

    def losses(self, output: Any, seen: Seen) -> Tensor:
        """(1 - alpha) x label's + alpha x teacher's.  Raises ValueError for another number of classes."""
        assert self.teacher is not None
        by_label, by_teacher = output if isinstance(output, tuple) else (output, output)
        alpha, kind, temperature = self.objective.alpha, self.objective.kind, self.objective.temperature
        return (1 - alpha) * super().losses(by_label, seen) + alpha * teacher_loss(by_teacher, self.teacher(seen.images), kind, temperature)


def teacher_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """logits (b, C) of both -> losses (b,) in fp32.

    * `hard`: cross-entropy with the teacher's own choice as the label (Touvron et al. 2021, equation 3);
    * `soft`: T^2 times the Kullback-Leibler divergence of softmax(student / T) from softmax(teacher / T) (equation 2; Hinton et al. 2015,
      section 2, for the T^2).  It is summed over the classes, as the papers write it; DeiT's code takes their mean.
    """
    student, teacher = student.float(), teacher.float()
    if kind == "hard":
        return per_sample_loss(student, teacher.argmax(dim=1))
    ours, theirs = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1) * temperature**2
