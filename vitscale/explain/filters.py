"""What the first layer and the table of positions have learned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.explain.look import Unexplained
from vitscale.models import AdaptivePatchEmbed, Backbone, VisionTransformer
from vitscale.models.position import resample


def embedding_filters(model: Backbone, count: int = 28) -> tuple[Tensor, Tensor]:
    """Principal components of the first layer's filters (Dosovitskiy et al. 2021, figure 7, left).

    -> (up to count, C, P, P), the strongest first, each of norm 1, and what share of the variance each explains.  The first layer is the
    first convolution: of a ViT, Swin or ConvNeXt the patch projection, of stems of several convolutions their first.  Raises Unexplained
    for a model that has none.
    """
    embed = getattr(model, "patch_embed", model)
    # the first look of adaptive patches only says where they lie
    inside = [embed.proj] if isinstance(embed, AdaptivePatchEmbed) else embed.modules()
    first = next((module for module in inside if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise Unexplained(f"{type(model).__name__} has no convolution whose filters could be shown")
    kernel = first.weight.detach().float()
    return principal_components(kernel.flatten(1), count, kernel.shape[1:])


def principal_components(rows: Tensor, count: int, shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """rows (n, d) -> components (up to count, d, or of `shape`) and their shares of the variance.  The sign is such that a component's
    largest number is positive, so that it is the same on every machine."""
    centred = rows - rows.mean(dim=0)
    _, strengths, components = torch.linalg.svd(centred, full_matrices=False)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = (components * largest.sign())[:count]
    shares = (strengths**2 / (strengths**2).sum().clamp(min=torch.finfo(rows.dtype).tiny))[:count]
    return components if shape is None else components.unflatten(1, shape), shares


def position_similarity(model: Backbone, grid: tuple[int, int] | None = None) -> Tensor:
    """Cosines between the positions of patches (Dosovitskiy et al. 2021, figure 7, middle) -> (down, across, down, across).

    `grid`: interpolated to it.  Raises Unexplained for a model that has no table of them.
    """
    if not isinstance(model, VisionTransformer):
        raise Unexplained(f"{type(model).__name__} has no table of positions to compare")
    if model.position not in ("learned", "sincos"):
        raise Unexplained(f"this model has no table of positions to compare: its model.position is {model.position}")
    wanted = grid or model.grid
    table = resample(model.pos_embed.detach().float(), model.grid, wanted)[0, -wanted[0] * wanted[1]:]
    unit = F.normalize(table, dim=-1)
    return (unit @ unit.T).unflatten(0, wanted).unflatten(2, wanted)
