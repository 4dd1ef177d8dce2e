"""What lies near in the space of features: k-nearest-neighbour classification and retrieval, by an exact index or faiss."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitscale.errors import RecipeError
from vitscale.evaluate.metrics import share
from vitscale.objectives.votes import voted

_CHUNK = 1024           # queries compared at once


def normed(features: NDArray[np.float32]) -> Tensor:
    """(n, D) -> of length 1 each."""
    return torch.nn.functional.normalize(torch.from_numpy(features).float(), dim=1)


def nearest(queries: Tensor, base: Tensor, k: int, faiss: bool = False, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """queries (q, D), base (n, D), both of length 1 -> cosines and numbers (q, k) of the k nearest, the nearest first.

    Exact by products of matrices; faiss: by its flat index of inner products, as exact.  Raises RecipeError where it is not installed.
    """
    if faiss:
        try:
            import faiss as library
        except ImportError:
            raise RecipeError("--faiss: install it with `pip install 'vitscale[faiss]'`, or leave it out") from None
        index: Any = library.IndexFlatIP(base.shape[1])
        index.add(base.numpy())
        values, numbers = index.search(queries.numpy(), k)
        return torch.from_numpy(values), torch.from_numpy(numbers)
    base, found = base.to(device), []
    for part in queries.split(_CHUNK):
        values, numbers = (part.to(device) @ base.T).topk(k, dim=1)
        found.append((values.cpu(), numbers.cpu()))
    return torch.cat([values for values, _ in found]), torch.cat([numbers for _, numbers in found])


def knn(train: NDArray[np.float32], train_labels: NDArray[np.int64], val: NDArray[np.float32], val_labels: NDArray[np.int64],
        k: int = 20, faiss: bool = False, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Each image is what its k nearest training images vote for, each vote weighted by exp(cosine / 0.07)."""
    k = min(k, len(train))
    cosines, numbers = nearest(normed(val), normed(train), k, faiss, device)
    classes = int(max(train_labels.max(), val_labels.max())) + 1
    return {"top1": share(voted(cosines, torch.from_numpy(train_labels)[numbers], classes).numpy() == val_labels), "k": k}


def retrieval(features: NDArray[np.float32], labels: NDArray[np.int64], ks: tuple[int, ...] = (1, 5, 10), faiss: bool = False,
              device: torch.device | str = "cpu") -> dict[str, Any]:
    """Every image asks for others of its class among all others: recall@k (is one among the k nearest, as Jegou et al. 2011 count) and
    the mean average precision over the whole ranking.  An image that is alone in its class asks nothing."""
    vectors, classes = normed(features), torch.from_numpy(labels)
    same = torch.bincount(classes)[classes] > 1
    asking = same.nonzero()[:, 0]
    if not len(asking):
        raise RecipeError("retrieval wants a class with two images at least")
    depth = min(max(ks) + 1, len(vectors))
    _, numbers = nearest(vectors[asking], vectors, depth, faiss, device)
    others = torch.stack([row[row != own][:depth - 1] for row, own in zip(numbers, asking, strict=True)])
    right = classes[others] == classes[asking][:, None]
    found: dict[str, Any] = {f"recall@{k}": share(right[:, :k].any(dim=1).numpy()) for k in ks if k < len(vectors)}
    precisions = []
    base = vectors.to(device)
    for part in asking.split(_CHUNK):
        cosines = vectors[part].to(device) @ base.T
        cosines[torch.arange(len(part)), part.to(device)] = -2.0          # itself comes last, and does not count
        order = cosines.argsort(dim=1, descending=True, stable=True)[:, :-1].cpu()
        relevant = (classes[order] == classes[part][:, None]).double()
        at = relevant.cumsum(dim=1) / torch.arange(1, order.shape[1] + 1)
        precisions.append((at * relevant).sum(dim=1) / relevant.sum(dim=1))
    return found | {"map": float(torch.cat(precisions).mean()), "queries": len(asking)}
