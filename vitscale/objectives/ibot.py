"""Self-distillation of views and of hidden patches (Zhou et al. 2022, iBOT), with KoLeo (Oquab et al. 2024, DINOv2) and
Gram anchoring (Siméoni et al. 2025, DINOv3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitscale.models import Backbone
from vitscale.models.multi_crop import MaskedCrops
from vitscale.objectives.block_masks import BlockMasks
from vitscale.objectives.dino import SelfDistilling
from vitscale.objectives.gram import gram_losses
from vitscale.objectives.koleo import koleo_losses
from vitscale.objectives.prototypes import patch_losses
from vitscale.objectives.rows import Ragged, Row, Rows
from vitscale.objectives.task import Companion, Frozen, Networks, Seen, is_evaluation
from vitscale.recipe.objectives import Ibot
from vitscale.recipe.schedules import Now
from vitscale.recipe.schema import Vit
from vitscale.shapes.vit import grid


class MaskedDistilling(SelfDistilling):
    """The student sees the teacher's views with blocks of patches hidden, and is to answer for these as the teacher, who sees them, does.

    The host draws the masks, so that it knows how many patches are hidden and no device is waited for.
    """

    objective: Ibot

    def __init__(self, model: Vit, objective: Ibot) -> None:
        super().__init__(model, objective)
        self.sampler = BlockMasks((grid(model),) * 2, objective.mask_probability, objective.mask_share)
        self.num_draws = self.sampler.num_draws * objective.global_views
        self.coupling = "group" if objective.koleo else "none"

    def companions(self) -> tuple[Companion, ...]:
        given, averaged = self.objective.gram_teacher, super().companions()
        size = self.objective.gram_image or self.model.image
        return averaged if given is None else (*averaged, Frozen(given, (grid(self.model),) * 2, size))

    def build(self) -> Backbone:
        return MaskedCrops(self.model, self.objective)

    def new_state(self) -> dict[str, Tensor]:
        centres = super().new_state()
        return centres | ({"patch_centre": torch.zeros(self.objective.patch_prototypes or self.objective.prototypes)} if centres else {})

    def resting(self, now: Now) -> tuple[str, ...]:
        return tuple(name for start in super().resting(now) for name in (start, start.replace("dino_head", "ibot_head")))

    def masks(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """What is hidden in the teacher's views, view by view: (T b, N) bool, and the places (M,) int64 of what is among the T b N.  In an
        evaluation nothing is."""
        assert seen.on_host is not None
        count, samples = self.objective.global_views, len(seen.labels)
        draws = seen.on_host.reshape(samples, count, -1).swapaxes(0, 1).reshape(count * samples, -1)
        mask = self.sampler.of(draws)
        if is_evaluation(seen):
            mask = np.zeros_like(mask[:samples])
        device = seen.images.device
        return torch.from_numpy(mask).to(device), torch.from_numpy(np.flatnonzero(mask)).to(device)

    def inputs(self, seen: Seen) -> tuple[Any, ...]:
        mask, picked = self.masks(seen)
        images, *more = seen.views
        return images, picked, mask, *more

    def survey(self, networks: Networks, seen: Seen) -> dict[str, Row]:
        """`teacher` (b, T, K), and ragged `patches`: its logits of what is hidden from the student."""
        mask, picked = self.masks(seen)
        images, *more = self.global_views(seen)
        logits, features, patches, _ = networks.teacher(images, picked, torch.zeros_like(mask), *more)
        owner = picked // grid(self.model)**2 % len(seen.labels)
        return self.surveyed(logits, features, seen) | {"patches": Ragged(patches, owner)}

    def couple(self, rows: Rows, state: Mapping[str, Tensor], now: Now) -> tuple[Mapping[str, Row], Mapping[str, Tensor]]:
        """Besides what DINO gives: ragged `patches`, probabilities, and `valid` (n,), which samples count."""
        told, state = super().couple(rows, state, now)
        patches = rows.ragged("patches")
        answers, state = self.answers(patches.values, rows.valid[patches.owner], rows, state, now, "patch_centre")
        return {**told, "patches": Ragged(answers, patches.owner), "valid": rows.valid}, state

    def losses(self, output: Any, seen: Seen) -> Tensor:
        """output: logits (V b, K) and pooled features (V b, D) of views, logits (M, K') of hidden patches, features (T b, N, D) of all."""
        assert seen.coupled is not None
        (_, pooled, patches, tokens), known, told = output, self.objective, seen.coupled.rows
        mask, picked = self.masks(seen)
        of_views = patch_losses(patches, told["patches"], picked // mask.shape[1], len(mask), known.student_temp)
        found = super().losses(output, seen) + known.patch_weight * of_views.unflatten(0, (known.global_views, -1)).mean(dim=0)
        if known.koleo:
            features = pooled.unflatten(0, (-1, len(seen.labels)))[:known.global_views]
            found = found + known.koleo * sum(koleo_losses(one, told["valid"], known.koleo_group) for one in features)
        if known.gram:
            assert self.teacher is not None
            anchored = gram_losses(tokens, self.teacher(torch.cat(seen.anchors)))
            found = found + known.gram * anchored.unflatten(0, (known.global_views, -1)).mean(dim=0)
        return found
