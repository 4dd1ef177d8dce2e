"""An encoder of views of several sizes, and a head: what self-distillation and LeJEPA train."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from vitscale.models.projection import Projection, PrototypeHead
from vitscale.models.simmim import hidden
from vitscale.models.vit import VisionTransformer
from vitscale.recipe.objectives import Dino, Ibot, Lejepa
from vitscale.recipe.schema import Vit
from vitscale.shapes.masked import encoder_section
from vitscale.shapes.vit import num_features


class Crops(VisionTransformer):
    """A VisionTransformer without a classifier, whose weights are a classifier's, that is shown views of several sizes."""

    def __init__(self, model: Vit) -> None:
        """Raises RecipeError when the section contradicts itself."""
        super().__init__(encoder_section(model))
        self.num_features = num_features(encoder_section(model), self.width)

    def pooled_views(self, views: Sequence[Tensor], keep: Tensor | None) -> Tensor:
        """views: (n, C, S, S) each, normalised; keep (2L, all n together) -> pooled features (all n, D) in their order.

        Views of one size that stand side by side go through the backbone together.
        """
        return torch.cat([self.forward_features(alike, kept, ("pooled",))["pooled"] for alike, kept in by_size(views, keep)])


class ProjectedCrops(Crops):
    """The same, and a `projector` of its pooled features."""

    def __init__(self, model: Vit, objective: Lejepa) -> None:
        """Raises RecipeError when a section contradicts itself."""
        super().__init__(model)
        self.projector = Projection(self.num_features, objective.hidden, objective.embedding, objective.layers, normed=True)

    def forward(self, images: Tensor, keep: Tensor | None = None, *more: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Views -> embeddings (all n, E) in their order, and pooled features (all n, D)."""
        pooled = self.pooled_views((images, *more), keep)
        return self.projector(pooled), pooled

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order, then the projector."""
        return [*self.blocks, self.projector]


class MultiCrop(Crops):
    """The same, and the head `dino_head` over its pooled features."""

    def __init__(self, model: Vit, objective: Dino) -> None:
        """Raises RecipeError when a section contradicts itself."""
        super().__init__(model)
        self.dino_head = PrototypeHead(self.num_features, objective.hidden, objective.bottleneck, objective.prototypes, objective.layers)

    def forward(self, images: Tensor, keep: Tensor | None = None, *more: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Views -> logits (all n, K) in their order, and pooled features (all n, D)."""
        pooled = self.pooled_views((images, *more), keep)
        return self.dino_head(pooled), pooled

    def units(self) -> Sequence[nn.Module]:
        """The blocks in order, then the head."""
        return [*self.blocks, self.dino_head]

    def initial_value(self, name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """Prototypes begin as torch begins a linear layer, which the paper's code leaves them at.  A head's other matrices begin as all do,
        which at the paper's widths is near its deviation of 0.02; with that the answers of a narrow head would vanish beside biases."""
        if not name.endswith("last_layer.weight"):
            return None
        bound = 1 / math.sqrt(shape[-1])
        return torch.empty(*shape, device="cpu").uniform_(-bound, bound, generator=generator)


class MaskedCrops(MultiCrop):
    """The same, which may be shown a token in place of some patches and answers for these too, by the head of the views or `ibot_head`."""

    def __init__(self, model: Vit, objective: Ibot) -> None:
        """Raises RecipeError when a section contradicts itself."""
        super().__init__(model, objective)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.ibot_head = None if objective.patch_prototypes is None else PrototypeHead(
            self.width, objective.hidden, objective.bottleneck, objective.patch_prototypes, objective.layers)

    def forward(  # type: ignore[override]
        self, images: Tensor, keep: Tensor | None, picked: Tensor, mask: Tensor, *more: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views, of which the first b' are of one size and have N patches each -> logits (all n, K) and pooled features
        (all n, D) of the views, logits (M, K') of patches, and features (b', N, D) of all patches of the first views.

        picked (M,) int64: for which patches an answer is wanted, their places in the first views' b' N.  mask (b', N) bool: which of
        them are hidden.
        """
        pooled, first = [], picked.new_empty(0)
        for number, (alike, kept) in enumerate(by_size((images, *more), keep)):
            tokens = self.patch_embed(alike)
            if number == 0:
                tokens = torch.cat([hidden(tokens[:len(mask)], mask, self.mask_token), tokens[len(mask):]])
            tokens = self.encoded(tokens, self.patch_embed.grid(alike), kept)
            pooled.append(self.pooled(tokens))
            if number == 0:
                first = tokens[:len(mask), self.before:]
        views, patches = torch.cat(pooled), first.flatten(0, 1).index_select(0, picked)
        if self.ibot_head is not None:
            return self.dino_head(views), views, self.ibot_head(patches), first
        logits = self.dino_head(torch.cat([views, patches]))        # once: a sharded head is gathered for each call
        return logits[:len(views)], views, logits[len(views):], first

    def units(self) -> Sequence[nn.Module]:
        return [*super().units(), *([] if self.ibot_head is None else [self.ibot_head])]


def by_size(images: Sequence[Tensor], keep: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Views (n, C, S, S) of several sizes -> those of one size that stand side by side together, each with its columns of keep."""
    first = 0
    for _, alike in groupby(images, key=lambda one: one.shape[-2:]):
        together = list(alike)
        given = torch.cat(together) if len(together) > 1 else together[0]
        yield given, None if keep is None else keep[:, first:first + len(given)]
        first += len(given)
