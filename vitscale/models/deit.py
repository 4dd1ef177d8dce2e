"""DeiT (Touvron et al. 2021): a Vision Transformer with a second token and head that learn from a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitscale.models.vit import VisionTransformer
from vitscale.recipe.schema import Deit
from vitscale.shapes.vit import shape_of


class DistilledVisionTransformer(VisionTransformer):
    """The distillation token follows the class tokens.  Parameter names are timm's."""

    head_inputs = ("norm", "pooled")

    def __init__(self, model: Deit) -> None:
        """Raises RecipeError when the section contradicts itself."""
        super().__init__(model)
        width = shape_of(model).width
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head_dist = nn.Linear(width, model.classes) if model.classes else nn.Identity()

    def placed_tokens(self) -> list[Tensor]:
        return [*super().placed_tokens(), self.dist_token]

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """In training the logits (B, classes) of the class and of the distillation token; in evaluation their mean, as section 5 has it.

        images and keep as VisionTransformer's.  Where classes is 0: the class token's features (B, D).
        """
        found = self.forward_features(images, keep, self.head_inputs)
        return self._both(found) if self.training and not isinstance(self.head, nn.Identity) else self.forward_head(found)

    def forward_head(self, found: Mapping[str, Tensor]) -> Tensor:
        if isinstance(self.head, nn.Identity):
            return found["pooled"]
        by_label, by_teacher = self._both(found)
        return (by_label + by_teacher) / 2

    def _both(self, found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.classify(found["pooled"]), self.head_dist(found["norm"][:, self.class_tokens])


def build(model: Deit) -> DistilledVisionTransformer:
    """The model section -> the model, on torch's current default device.  Raises RecipeError."""
    return DistilledVisionTransformer(model)
