"""Classes that an image gives itself: by how much it was turned, in which order its tiles were laid."""

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitscale.models import Backbone, build_model
from vitscale.objectives.classification import per_sample_loss, topk_correct
from vitscale.objectives.task import Seen, Task
from vitscale.recipe.objectives import Jigsaw, Rotation
from vitscale.recipe.schema import Model
from vitscale.shapes.families import trained_section

CANDIDATES = 10_000     # permutations to choose from, where there are more


class _Guessing(Task):
    """Which of some changes an image went through: one uniform for each image says."""

    num_draws = 1

    def __init__(self, model: Model, objective: Rotation | Jigsaw) -> None:
        self.objective, self.section = objective, trained_section(model, objective)

    def build(self) -> Backbone:
        return build_model(self.section)

    def change(self, seen: Seen) -> Tensor:
        """(b,) int64 in 0..classes - 1, equally likely."""
        assert seen.draws is not None
        count = self.section.classes
        return (seen.draws[:, 0] * count).long().clamp(max=count - 1)       # fp32 may round a uniform up to 1

    def losses(self, output: Tensor, seen: Seen) -> Tensor:
        """Cross-entropy (b,); output (b, classes) logits."""
        return per_sample_loss(output, self.change(seen))

    def hits(self, output: Tensor, seen: Seen, k: int) -> Tensor:
        """(b,) bool: is the change among the k likeliest?  By chance k / classes are."""
        return topk_correct(output, self.change(seen), k)


class Rotating(_Guessing):
    """Quarter turns counter-clockwise (Gidaris et al. 2018).  The paper puts all four of an image into a batch, here one is drawn."""

    def inputs(self, seen: Seen) -> tuple[Tensor, ...]:
        return (turned(seen.images, self.change(seen)),)


class Puzzling(_Guessing):
    """Tiles of the image laid in one of a set of orders (Noroozi & Favaro 2016).

    The whole image goes through the backbone once (Carlucci et al. 2019, JiGen), not each tile by itself; so every family can do it.
    Tiles lie edge to edge: the paper leaves random gaps, so that edges give less away.
    """

    def __init__(self, model: Model, objective: Jigsaw) -> None:
        super().__init__(model, objective)
        self.grid = objective.grid
        self.permutations = torch.from_numpy(permutations(objective.grid**2, objective.permutations))

    def inputs(self, seen: Seen) -> tuple[Tensor, ...]:
        chosen = self.permutations.to(seen.images.device)[self.change(seen)]
        return (laid(seen.images, chosen, self.grid),)


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """images (b, C, S, S), quarters (b,) -> each turned counter-clockwise by so many quarters."""
    found = images
    for number in range(1, 4):
        found = torch.where((quarters == number)[:, None, None, None], images.rot90(number, (2, 3)), found)
    return found


def laid(images: Tensor, orders: Tensor, grid: int) -> Tensor:
    """images (b, C, S, S) of grid x grid tiles, orders (b, T) -> at place t, row by row, the tile that lay at orders[t]."""
    tiles = images.unflatten(3, (grid, -1)).unflatten(2, (grid, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)    # (b, T, C, s, s)
    tiles = tiles.gather(1, orders[:, :, None, None, None].expand_as(tiles))
    return tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def permutations(tiles: int, count: int) -> NDArray[np.int64]:
    """`count` orders of the tiles that differ much from each other, the same on every machine.  -> (count, tiles)

    Noroozi & Favaro 2016, algorithm 1: each next one has the largest mean Hamming distance from those chosen; of equal ones the first.
    All permutations are candidates where they are no more than CANDIDATES, else so many of them.
    """
    if math.factorial(tiles) <= CANDIDATES:
        candidates = np.array(list(itertools.permutations(range(tiles))))
    else:
        bits = np.random.Philox(key=np.array([0, tiles], np.uint64))
        candidates = np.unique(bits.random_raw(CANDIDATES * tiles).reshape(CANDIDATES, tiles).argsort(axis=1, kind="stable"), axis=0)
    chosen, distance = [0], np.zeros(len(candidates), np.int64)
    while len(chosen) < count:
        distance += (candidates != candidates[chosen[-1]]).sum(axis=1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return candidates[chosen].astype(np.int64)
