"""Everything that the chosen methods say of one image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.checkpoint.load import Loaded
from vitscale.explain.distance import attention_distance
from vitscale.explain.features import feature_similarity
from vitscale.explain.look import Look
from vitscale.explain.methods import METHODS
from vitscale.explain.pictures import Picture
from vitscale.explain.rollout import rollout

CLASSES = 3         # the most likely ones, each with maps of its own


@dataclass(frozen=True)
class Study:
    """What is not asked for, or is not there, is None or empty."""

    name: str
    pixels: Picture                             # (S, S, C) as the model sees it
    grid: tuple[int, int]
    top: list[tuple[int, float]]                # the most likely classes and their probabilities
    classes: list[int]                          # those that have maps: the one that is explained first, then the most likely
    heats: dict[str, dict[int | None, Tensor]]  # method -> class (None: the same for all) -> (down, across)
    features: Tensor                            # (down, across, D)
    attention: Tensor | None = None             # (L, H, N, N)
    reading: Tensor | None = None               # (N,)
    rollout: Tensor | None = None               # (N, N)
    similarity: Tensor | None = None            # (places, places)
    distance: Tensor | None = None              # (L, H) pixels

    def heat(self, method: str) -> Tensor:
        """(down, across): for the class that is explained."""
        return self.heats[method][self.classes[0] if METHODS[method].by_class else None]


def study(loaded: Loaded, name: str, pixels: Picture, methods: Sequence[str], target: int | None = None) -> Study:
    """pixels (S, S, C) uint8.  target: the class that is explained; None: the one that the model says."""
    images = loaded.transform.normalised(torch.from_numpy(pixels)[None])
    images = images.to(next(loaded.model.parameters()).device)
    look = Look(loaded.model, images)
    top: list[tuple[int, float]] = []
    if loaded.class_names:
        shares = loaded.probabilities(images)[0]
        top = [(one, float(shares[one])) for one in shares.argsort(descending=True)[:CLASSES].tolist()]
    classes = list(dict.fromkeys(([] if target is None else [target]) + [one for one, _ in top]))
    heats: dict[str, dict[int | None, Tensor]] = {}
    for method in methods:
        made = METHODS[method]
        if made.heat is not None:
            wanted: list[int | None] = [*classes] if made.by_class else [None]
            heats[method] = {one: made.heat(look, torch.tensor([one or 0]))[0].cpu() for one in wanted}
    of = {"attention": look.maps[:, 0].cpu(), "reading": look.reading[0].cpu()} if look.attends else {}
    if "rollout" in methods:
        of["rollout"] = rollout(look.maps)[0].cpu()
    if "similarity" in methods:
        of["similarity"] = feature_similarity(look.features)[0].cpu()
    if "distance" in methods:
        of["distance"] = attention_distance(look.maps, look.grid, loaded.section.image // look.grid[0], look.before).cpu()
    return Study(name, pixels, look.grid, top, classes, heats, look.features[0].cpu(), **of)
