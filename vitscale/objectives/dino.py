"""Self-distillation with no labels (Caron et al. 2021, DINO): views of an image are to give the answer that its average gives of others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.models import Backbone
from vitscale.models.multi_crop import MultiCrop
from vitscale.objectives.collapse import divergence, entropy, information
from vitscale.objectives.prototypes import centred, cross_entropy, moved_centre, sinkhorn, view_losses
from vitscale.objectives.rows import Row, Rows
from vitscale.objectives.task import Averaged, Companion, Networks, Seen, Task, is_evaluation
from vitscale.recipe.objectives import Dino
from vitscale.recipe.schedules import Now
from vitscale.recipe.schema import Vit


class SelfDistilling(Task):
    """The teacher is surveyed with the global views of every sample; its answers wait, made sharp and centred, for the student's."""

    objective: Dino
    surveys = True

    def __init__(self, model: Vit, objective: Dino) -> None:
        self.model, self.objective = model, objective

    def build(self) -> Backbone:
        return MultiCrop(self.model, self.objective)

    def companions(self) -> tuple[Companion, ...]:
        return (Averaged(self.objective.momentum),)

    def new_state(self) -> dict[str, Tensor]:
        return {"centre": torch.zeros(self.objective.prototypes)} if self.objective.centring == "average" else {}

    def resting(self, now: Now) -> tuple[str, ...]:
        return ("dino_head.last_layer.",) if now.images <= now.length(self.objective.rest_prototypes) else ()

    def inputs(self, seen: Seen) -> tuple[Any, ...]:
        return seen.views

    def global_views(self, seen: Seen) -> list[Tensor]:
        """The teacher's (v b, C, S, S) of each set that has some; of an evaluation's batch the only ones."""
        found, left = [], self.objective.global_views * len(seen.labels)
        for images in seen.views:
            found.append(images[:left])
            left -= len(found[-1])
            if not left:
                break
        return found

    def survey(self, networks: Networks, seen: Seen) -> dict[str, Row]:
        """`teacher` (b, T, K): its logits of T views; in an evaluation `features` (b, D) too, which are the teacher's."""
        logits, features = networks.teacher(*self.global_views(seen))
        return self.surveyed(logits, features, seen)

    @staticmethod
    def surveyed(logits: Tensor, features: Tensor, seen: Seen) -> dict[str, Row]:
        rows: dict[str, Row] = {"teacher": logits.unflatten(0, (-1, len(seen.labels))).transpose(0, 1)}
        return rows | ({"features": features} if is_evaluation(seen) else {})

    def couple(self, rows: Rows, state: Mapping[str, Tensor], now: Now) -> tuple[Mapping[str, Row], Mapping[str, Tensor]]:
        """`teacher` (n, T, K) probabilities, their `entropy` (n,), and of the whole batch `mutual` (n,), what they tell of images."""
        logits = rows["teacher"]
        flat, state = self.answers(logits.flatten(0, 1), rows.valid.repeat_interleave(logits.shape[1]), rows, state, now)
        answers = flat.view_as(logits)
        # one exchange: of each prototype's share, of the answers' entropies, of the samples
        spread = entropy(answers).mean(dim=1)
        sums = rows.total(torch.cat([answers.mean(dim=1), spread[:, None], torch.ones_like(spread)[:, None]], dim=1))
        means = sums[:-1] / sums[-1].clamp(min=1)
        told = information(means[:-1], means[-1]).float().expand(len(logits))
        return {"teacher": answers, "entropy": spread, "mutual": told}, state

    def answers(
        self, logits: Tensor, valid: Tensor, rows: Rows, state: Mapping[str, Tensor], now: Now, centre: str = "centre",
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The teacher's logits (m, K), of which valid (m,) count -> probabilities (m, K), and the state in which the centre has moved."""
        known, temperature = self.objective, now.value(self.objective.teacher_temp)
        if known.centring == "sinkhorn":
            return sinkhorn(logits, valid, temperature, rows.over_ranks, known.sinkhorn_iterations), state
        moved = moved_centre(state[centre], logits, valid, known.centre_momentum, rows.over_ranks)
        return centred(logits, state[centre], temperature), {**state, centre: moved}

    def losses(self, output: Any, seen: Seen) -> Tensor:
        """output: the student's logits (V b, K) of all views, the teacher's first, and its features."""
        assert seen.coupled is not None
        return view_losses(output[0].unflatten(0, (-1, len(seen.labels))).unbind(), seen.coupled.rows["teacher"].unbind(1),
                           self.objective.student_temp)

    def evaluation_losses(self, output: Any, seen: Seen) -> Tensor:
        """How far the student's answer is from the teacher's of the same view."""
        assert seen.coupled is not None
        logits = seen.coupled.rows["teacher"][:, 0]
        centre = seen.coupled.state.get("centre", logits.new_zeros(logits.shape[1]))
        answers = centred(logits, centre, seen.coupled.now.value(self.objective.teacher_temp))
        return cross_entropy(output[0], answers, self.objective.student_temp)

    def divergence(self, output: Any, seen: Seen) -> Tensor:
        """(b,): of the student's answer to its second view from the teacher's to the first."""
        assert seen.coupled is not None
        views = output[0].unflatten(0, (-1, len(seen.labels)))
        return divergence(views[1], seen.coupled.rows["teacher"][:, 0], self.objective.student_temp)

    def features(self, output: Any, seen: Seen) -> Tensor:
        assert seen.coupled is not None
        return seen.coupled.rows["features"]
