"""LeJEPA (Balestriero & LeCun 2025): views of an image agree, and all embeddings of a step together are an isotropic Gaussian."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.models import Backbone
from vitscale.models.exact import wide
from vitscale.models.multi_crop import ProjectedCrops
from vitscale.objectives.rows import Row, Rows
from vitscale.objectives.sigreg import directions, invariance_losses, pull, pulled, shared_pull, waves
from vitscale.objectives.task import Networks, Seen, Task, is_evaluation
from vitscale.recipe.objectives import Lejepa
from vitscale.recipe.schedules import Now
from vitscale.recipe.schema import Vit


class GaussianEmbedding(Task):
    """The student is surveyed first, so that each sample can be told how the whole step's statistic pulls at it.

    The statistic is of embeddings less their mean over the step, the gradient through that mean included.  The paper's projector has
    BatchNorms, by which what all images have in common never reaches an embedding; here it would, move with every update, and outweigh
    in the gradient what tells images apart.
    """

    objective: Lejepa
    surveys = True
    coupling = "batch"

    def __init__(self, model: Vit, objective: Lejepa) -> None:
        self.model, self.objective = model, objective

    def build(self) -> Backbone:
        return ProjectedCrops(self.model, self.objective)

    def inputs(self, seen: Seen) -> tuple[Any, ...]:
        return seen.views

    def survey(self, networks: Networks, seen: Seen) -> dict[str, Row]:
        """`embedded` (b, V, D)."""
        if is_evaluation(seen):
            return {}
        return {"embedded": wide(networks.student(*seen.views)[0]).unflatten(0, (-1, len(seen.labels))).transpose(0, 1)}

    def couple(self, rows: Rows, state: Mapping[str, Tensor], now: Now) -> tuple[Mapping[str, Row], Mapping[str, Tensor]]:
        """The same for every sample: `along` (n, D, M), `centre` (n, D), the mean embedding; `statistic` (n,), `slope` (n, V, 2, M, T) and
        `shared` (n, D), times what losses are divided by."""
        embedded = rows["embedded"]
        # drawn from the number of images seen, as the paper's listing draws them from the step: the same on every rank and in every resume
        draw = torch.Generator(device="cpu").manual_seed(now.images)
        along = directions(torch.randn(embedded.shape[2], self.objective.directions, generator=draw, device="cpu")).to(embedded.device)
        centre, count = rows.total(torch.nn.functional.pad(embedded.mean(dim=1), (0, 1), value=1.0)).split([embedded.shape[2], 1])
        count = count[0].clamp(min=1)
        centre = (centre / count).to(embedded.dtype)
        sums = rows.over_ranks(torch.stack([rows.own(waves(view - centre, along)) for view in embedded.unbind(1)]))
        value, slope = pull(sums, count)
        slope = slope * rows.size / len(value)
        told = {"along": along, "centre": centre, "statistic": value.mean() * rows.size / count, "slope": slope,
                "shared": shared_pull(sums, slope, along) / (count * len(value))}
        return {name: one.to(embedded.dtype).expand(len(embedded), *one.shape) for name, one in told.items()}, state

    def losses(self, output: Any, seen: Seen) -> Tensor:
        """output: embeddings (V b, E), and features.  The statistic's part has its true value and, over the step, its true gradient."""
        assert seen.coupled is not None
        told, share = seen.coupled.rows, self.objective.sigreg
        views = output[0].unflatten(0, (-1, len(seen.labels)))
        pulls = torch.stack([pulled(view - told["centre"][0], told["along"][0], slope) - wide(view) @ told["shared"][0]
                             for view, slope in zip(views, told["slope"][0], strict=True)]).sum(dim=0)
        return (1 - share) * invariance_losses(views, self.objective.global_views) + share * (told["statistic"] + pulls - pulls.detach())

    def evaluation_losses(self, output: Any, seen: Seen) -> Tensor:
        """How far the mean square of an embedding is from a standard Gaussian's; of single views there is no agreement."""
        return (wide(output[0]).square().mean(dim=-1) - 1).abs()

    def features(self, output: Any, seen: Seen) -> Tensor:
        features: Tensor = output[1]
        return features
