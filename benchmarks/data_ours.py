"""vitscale's side of the data benchmark."""

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import serve

from vitscale.data import Order, SetIndex, ShardReader, native, open_index
from vitscale.data.decoded_before import DecodedImages, sum_of

_SOUND: dict[int, DecodedImages] = {}


def crop(files: list[str], draws: list[list[Sequence[float]]], size: int, first: bool, keep: str | None = None,
         libraries: bool = False) -> dict[str, Any]:
    """Decode, crop and resize images that lie in memory, as the loader does.  first: as in a first epoch, each image whole; else those that
    an earlier call has decoded are known again.  libraries: without the native decoder."""
    from vitscale.data.crop import RandomCrop
    from vitscale.data.decode import decode

    present = native._module
    if libraries:
        native._module = None
    data, rule = [Path(file).read_bytes() for file in files], RandomCrop()
    slot, kept = np.empty((size, size, 3), np.uint8), []
    for rows in draws:
        sound = DecodedImages(len(data)) if first else _SOUND.setdefault(len(data), DecodedImages(len(data)))
        for number, (one, row) in enumerate(zip(data, rows, strict=True)):
            found = sum_of(one)
            known, marks = sound.contains(number, found), sound.marks(number, found)
            decode(one, rule, size, draws=row, sound=known, out=slot, marks=marks)      # into a batch that is there
            if not known:
                sound.note(number, found, marks)
            kept += [slot.copy()] * bool(keep)
    native._module = present
    if keep:
        np.save(keep, np.stack(kept))
    return {"samples": len(draws) * len(data)}


_INDEXES: dict[str, SetIndex] = {}


def _index(urls: list[str], index_dir: str) -> SetIndex:
    return _INDEXES.setdefault(str(urls), open_index(urls, index_dir))


def read(urls: list[str], index_dir: str, passes: int) -> dict[str, Any]:
    """Every member of every sample, in the order of training."""
    index = _index(urls, index_dir)
    reader = ShardReader(index)
    count = index.num_samples
    order = Order(index.counts, 0, count, 1)
    for epoch in range(passes):
        shards, numbers = order.locate(order.sample_ids(epoch * count, np.arange(count)))
        for shard, number in zip(shards.tolist(), numbers.tolist(), strict=True):
            reader.read(shard, number)
    reader.close()
    return {"samples": passes * count}


def end(urls: list[str], index_dir: str, passes: int, label: str, size: int, workers: int) -> dict[str, Any]:
    """From shards to micro-batches of uint8 images and labels by the stream that `vitscale train` reads."""
    import cv2
    import torch

    from vitscale.data import open_stream
    from vitscale.recipe.load import check_recipe

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    index = _index(urls, index_dir)
    batch = min(64, index.num_samples)
    recipe = check_recipe({
        "name": "benchmark", "model": {"size": "tiny", "image": size, "patch": size // 4, "classes": 1 << 20},
        "data": {"train": urls, "index_dir": index_dir, "label": label, "lanes": min(8, batch), "workers": workers},
        "optim": {"lr": 1e-3}, "global_batch": batch - batch % min(8, batch), "duration": "1 epochs",
    }, "benchmarks/data.py")
    with open_stream(recipe, index, rank=0, world=1, micro_batch=recipe.global_batch) as stream:
        for _ in stream.until(passes * index.num_samples):
            pass
        return {"samples": stream.position}


VIEWS = [       # Oquab et al. 2024, by the code's crops of 224 and 96 pixels
    {"name": "blurred", "augment": {"scale": [0.32, 1.0], "color_jitter": [0.4, 0.4, 0.2, 0.1], "color_jitter_prob": 0.8, "grey": 0.2,
                                    "blur": 1.0}},
    {"name": "solarized", "augment": {"scale": [0.32, 1.0], "color_jitter": [0.4, 0.4, 0.2, 0.1], "color_jitter_prob": 0.8, "grey": 0.2,
                                      "blur": 0.1, "solarize": 0.2}},
    {"name": "local", "count": 8, "image": 96, "augment": {"scale": [0.05, 0.32], "color_jitter": [0.4, 0.4, 0.2, 0.1],
                                                           "color_jitter_prob": 0.8, "grey": 0.2, "blur": 0.5}},
]


def views(urls: list[str], index_dir: str, passes: int) -> dict[str, Any]:
    """From shards to normalised views, augmented as on the device, by the stream and the step's own code."""
    import torch

    from vitscale.data import open_stream
    from vitscale.recipe.load import check_recipe
    from vitscale.train.step import device_inputs

    torch.set_num_threads(1)
    index = _index(urls, index_dir)
    batch = min(16, index.num_samples)
    recipe = check_recipe({
        "name": "benchmark", "model": {"size": "tiny", "image": 224, "patch": 16, "classes": 0},
        "data": {"train": urls, "index_dir": index_dir, "label": None, "lanes": min(8, batch), "workers": 1, "views": VIEWS},
        "objective": {"name": "dino"}, "optim": {"lr": 1e-3}, "global_batch": batch - batch % min(8, batch), "duration": "1 epochs",
    }, "benchmarks/data.py")
    with open_stream(recipe, index, rank=0, world=1, micro_batch=recipe.global_batch) as stream:
        for step in stream.until(passes * index.num_samples):
            for micro in step.micro:
                device_inputs(micro, torch.device("cpu"), recipe.data.augment)
        return {"samples": stream.position}


def resume(urls: str, index_dir: str, lanes: int, batch: int) -> None:
    """A fresh process: open the set, be somewhere in the middle, know the next batch's samples and draws.  Prints seconds and bytes."""
    from vitscale.data import uniforms
    from vitscale.data.crop import DRAWS

    started = time.perf_counter()
    index = open_index(urls, index_dir, check=False)
    order = Order(index.counts, 0, batch, lanes)
    position = order.position_of(order.steps_per_epoch // 2)
    step = order.next(position)
    ids = order.sample_ids(step.start, order.share(step, 0, 1))
    shards, _ = order.locate(ids)
    uniforms(0, 0, 0, ids, 0, DRAWS)
    assert len(index.hash) == 64
    took = time.perf_counter() - started
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, len(set(shards.tolist())), index.num_samples)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        resume(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        serve({"crop": crop, "read": read, "end": end, "views": views})
