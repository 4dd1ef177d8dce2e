"""An encoder of views of several sizes, and a head over prototypes: what self-distillation trains."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from vitscale.models.projection import PrototypeHead
from vitscale.models.vit import VisionTransformer
from vitscale.recipe.objectives import Dino
from vitscale.recipe.schema import Vit
from vitscale.shapes.masked import encoder_section
from vitscale.shapes.vit import num_features

_DEVIATION = 0.02       # of the head's first weights: the paper's code


class MultiCrop(VisionTransformer):
    """A VisionTransformer without a classifier, whose weights are a classifier's, and the head `dino_head` over its pooled features."""

    def __init__(self, model: Vit, objective: Dino) -> None:
        """Raises RecipeError when a section contradicts itself."""
        super().__init__(encoder_section(model))
        self.dino_head = PrototypeHead(num_features(encoder_section(model), self.width), objective.hidden, objective.bottleneck,
                                       objective.prototypes, objective.layers)

    def forward(self, images: Tensor, keep: Tensor | None = None, *more: Tensor) -> Tensor:
        """images, and `more` of other views: (n, C, S, S) each, normalised; keep (2L, all n together) -> logits (all n, K) in their order.

        Views of one size that stand side by side go through the backbone together.
        """
        pooled, first = [], 0
        for _, alike in groupby((images, *more), key=lambda one: one.shape[-2:]):
            together = list(alike)
            given = torch.cat(together) if len(together) > 1 else together[0]
            kept = None if keep is None else keep[:, first:first + len(given)]
            first += len(given)
            pooled.append(self.forward_features(given, kept, ("pooled",))["pooled"])
        return self.dino_head(torch.cat(pooled))

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order, then the head."""
        return [*self.blocks, self.dino_head]

    def initial_value(self, name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        if not name.startswith("dino_head.") or len(shape) < 2:
            return None
        return torch.nn.init.trunc_normal_(torch.empty(*shape, device="cpu"), std=_DEVIATION, generator=generator)
