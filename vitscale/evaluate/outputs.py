"""A model's answers and features on the samples of shards: through training's own data plane, on any number of ranks, each sample once."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitscale.checkpoint.load import Loaded
from vitscale.data.ahead import Ahead
from vitscale.data.batch import Fetcher
from vitscale.data.cache import ShardCache
from vitscale.data.index import SetIndex
from vitscale.data.labels import LabelRule
from vitscale.data.loader import EvalStream
from vitscale.errors import DataError
from vitscale.evaluate.embed import features
from vitscale.evaluate.images import CACHE_BYTES
from vitscale.parallel.world import World
from vitscale.processes import usable_cores

log = logging.getLogger(__name__)
DEPTH = 4       # batches decoded ahead


@dataclass(frozen=True)
class Outputs:
    """Of the samples that could be read, in the order of the index."""

    ids: NDArray[np.int64]                  # (n,)
    labels: NDArray[np.int64]               # (n,), or (n, C) of 0 and 1 where a sample has any number of labels
    logits: NDArray[np.float32] | None      # (n, C)
    features: NDArray[np.float32] | None    # (n, D)
    bad: int                                # samples that could not be read


def outputs(loaded: Loaded, index: SetIndex, world: World, *, label: LabelRule, classes: int, batch: int = 64, logits: bool = True,
            layer: str | None = None) -> Outputs | None:
    """On rank 0, of every sample of the set once; None on other ranks.  Collective.  `layer`: whose (mean) features are kept.

    `classes`: of the labels, which may be fewer than the model's.  Raises DataError if nothing could be read, or an answer is no number.
    """
    transform, device = loaded.transform, world.device
    fetcher = Fetcher(index, label=label, classes=classes, channels=transform.channels, group=1,
                      crops=[transform.centre], exif=transform.exif, cache=ShardCache(None, CACHE_BYTES))
    bad: list[dict[str, Any]] = []
    num_micro = math.ceil(math.ceil(index.num_samples / world.size) / batch)
    ahead = Ahead(fetcher, workers=max(usable_cores() // world.local_size, 1), depth=DEPTH, pin=device.type == "cuda", max_bad_fraction=1.0,
                  on_bad=bad.append)
    stream = EvalStream(index, ahead, rank=world.rank, world=world.size, micro_batch=batch, num_micro=num_micro, seed=0, num_draws=0,
                        image=transform.image)
    parts: dict[str, list[NDArray[Any]]] = {"ids": [], "labels": [], "logits": [], "features": []}
    with stream, torch.inference_mode():
        for micro in stream:
            good = (micro.weight > 0).numpy()
            if not good.any():
                continue
            images = transform.normalised(micro.images.to(device, non_blocking=True))
            parts["ids"].append(micro.ids.numpy()[good])
            parts["labels"].append((micro.labels if micro.targets is None else micro.targets.long()).numpy()[good])
            if logits:
                parts["logits"].append(loaded.model(images).float().cpu().numpy()[good])
            if layer is not None:
                parts["features"].append(features(loaded.model, images, [layer])[layer].numpy()[good])
    mine = {name: np.concatenate(values) for name, values in parts.items() if values}
    gathered = world.gather((mine, bad))
    if gathered is None:
        return None
    for row in [row for _, rows in gathered for row in rows][:10]:
        log.warning("left out: %s: %s: %s: %s", row["shard"], row["key"], row["reason"], row["detail"])
    whole = {name: _together([part for part, _ in gathered], name) for name in parts}
    if whole["ids"] is None or whole["labels"] is None:
        raise DataError(f"{index.urls[0]}: no sample of the set could be read")
    if whole["logits"] is not None and (lost := int((~np.isfinite(whole["logits"])).any(axis=1).sum())):
        raise DataError(f"{index.urls[0]}: the model's answers to {lost} of {len(whole['ids'])} samples are not finite; did its "
                        "training diverge?")
    return Outputs(whole["ids"], whole["labels"], whole["logits"], whole["features"], sum(len(rows) for _, rows in gathered))


def _together(parts: Sequence[dict[str, NDArray[Any]]], name: str) -> NDArray[Any] | None:
    """Ranks hold neighbouring stretches of the index, in their order."""
    found = [part[name] for part in parts if name in part]
    return np.concatenate(found) if found else None
