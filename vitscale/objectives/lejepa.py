"""LeJEPA (Balestriero & LeCun 2025): views of an image agree, and all embeddings of a step together are an isotropic Gaussian."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitscale.models import Backbone
from vitscale.models.exact import wide
from vitscale.models.multi_crop import ProjectedCrops
from vitscale.objectives.rows import Row, Rows
from vitscale.objectives.sigreg import directions, invariance_losses, pull, pulled, waves
from vitscale.objectives.task import Networks, Seen, Task, is_evaluation
from vitscale.recipe.course import Now
from vitscale.recipe.objectives import Lejepa
from vitscale.recipe.schema import Vit


class GaussianEmbedding(Task):
    """The student is surveyed first, so that each sample can be told how the whole step's statistic pulls at it."""

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
        """The same for every sample: `along` (n, D, M); `statistic` (n,) and `slope` (n, V, 2, M, T), times what losses are divided by."""
        embedded = rows["embedded"]
        # drawn from the number of images seen, as the paper's listing draws them from the step: the same on every rank and in every resume
        draw = torch.Generator(device="cpu").manual_seed(now.images)
        along = directions(torch.randn(embedded.shape[2], self.objective.directions, generator=draw, device="cpu")).to(embedded.device)
        views = torch.stack([rows.own(waves(view, along)) for view in embedded.unbind(1)])
        count = rows.own(torch.ones_like(embedded[:, 0, 0]))
        sums = rows.over_ranks(torch.cat([views.flatten(), count[None]]))          # one exchange
        count = sums[-1].clamp(min=1)
        value, slope = pull(sums[:-1].view_as(views), count)
        told = {"along": along, "statistic": value.mean() * rows.size / count, "slope": slope * rows.size / len(value)}
        return {name: one.to(embedded.dtype).expand(len(embedded), *one.shape) for name, one in told.items()}, state

    def losses(self, output: Any, seen: Seen) -> Tensor:
        """output: embeddings (V b, E), and features.  The statistic's part has its true value and, over the step, its true gradient."""
        assert seen.coupled is not None
        told, share = seen.coupled.rows, self.objective.sigreg
        views = output[0].unflatten(0, (-1, len(seen.labels)))
        pulls = torch.stack([pulled(view, told["along"][0], slope) for view, slope in zip(views, told["slope"][0], strict=True)]).sum(dim=0)
        return (1 - share) * invariance_losses(views, self.objective.global_views) + share * (told["statistic"] + pulls - pulls.detach())

    def evaluation_losses(self, output: Any, seen: Seen) -> Tensor:
        """How far the mean square of an embedding is from a standard Gaussian's; of single views there is no agreement."""
        return (wide(output[0]).square().mean(dim=-1) - 1).abs()

    def features(self, output: Any, seen: Seen) -> Tensor:
        features: Tensor = output[1]
        return features
