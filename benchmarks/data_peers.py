"""The peers' side of the data benchmark: webdataset, PIL and OpenCV used as timm and open_clip use them.  Knows nothing of vitscale."""

import contextlib
import importlib.util
import io
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset as wds
from measure import serve
from PIL import Image

BATCH = 64
Array = np.ndarray[Any, Any]


def box_of(height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params -> (top, left, height, width); timm's is the same."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def by_pil(data: bytes, size: int, box: tuple[int, int, int, int] | None = None) -> Array:
    """Whole image, crop, antialiased bicubic."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, h, w = box or box_of(image.height, image.width)
    return np.asarray(image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC))


def by_opencv(data: bytes, size: int) -> Array:
    """OpenCV has no antialiased bicubic, and its shortcuts are not of equal quality (LOG.md); so torch resizes, as torchvision v2 does."""
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    top, left, h, w = box_of(*pixels.shape[:2])
    planes = torch.from_numpy(pixels[top:top + h, left:left + w]).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=(size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def crop(files: list[str], boxes: list[list[tuple[int, int, int, int]]], size: int, keep: str | None = None) -> dict[str, Any]:
    """Decode, crop and resize images that lie in memory."""
    data = [Path(file).read_bytes() for file in files]
    slot, kept = np.empty((size, size, 3), np.uint8), []
    for row in boxes:
        for one, box in zip(data, row, strict=True):
            slot[:] = by_pil(one, size, tuple(box))
            kept += [slot.copy()] * bool(keep)
    if keep:
        np.save(keep, np.stack(kept))
    return {"samples": len(boxes) * len(data)}


def read(urls: list[str], passes: int) -> dict[str, Any]:
    """webdataset's reader, members left as bytes."""
    pipeline = wds.DataPipeline(wds.SimpleShardList(urls * passes), wds.tarfile_to_samples())
    return {"samples": sum(1 for _ in pipeline)}


class _Sample:
    """One sample to (image, label): in a worker, so it has to be picklable."""

    def __init__(self, decoder: Callable[[bytes, int], Array], size: int) -> None:
        self.decoder, self.size = decoder, size

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, int]:
        pixels = self.decoder(sample[0], self.size)
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), int(sample[1])


def _stack(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([one[0] for one in samples]), torch.tensor([one[1] for one in samples])


def end(urls: list[str], passes: int, decoder: str, image: str, label: str, size: int, workers: int) -> dict[str, Any]:
    """From shards to batches of uint8 images and labels: shard shuffle, shuffle buffer, decode, crop, flip, batch in worker processes."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset = wds.DataPipeline(
        wds.SimpleShardList(urls * passes), wds.detshuffle(100), wds.split_by_worker, wds.tarfile_to_samples(),
        wds.shuffle(500, initial=100), wds.to_tuple(image, label), wds.map(_Sample(by_pil if decoder == "pil" else by_opencv, size)),
        wds.batched(BATCH, collation_fn=_stack, partial=True),
    )
    loader: Iterator[Any] = iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))
    return {"samples": sum(len(images) for images, _ in loader)}


def views(files: list[str], passes: int) -> dict[str, Any]:
    """Images that lie in memory to normalised views, as DINOv2's DataAugmentationDINO makes them (facebookresearch/dinov2,
    dinov2/data/augmentations.py and transforms.py), stacked into batches: with PIL's images and torchvision's transforms."""
    from torchvision import transforms as T

    torch.set_num_threads(1)

    def cut(size: int, low: float, high: float) -> Any:
        return T.Compose([T.RandomResizedCrop(size, scale=(low, high), interpolation=T.InterpolationMode.BICUBIC),
                          T.RandomHorizontalFlip(p=0.5)])

    def soft(probability: float) -> Any:
        return T.RandomApply([T.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=probability)

    colours = T.Compose([T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), T.RandomGrayscale(p=0.2)])
    tensor = T.Compose([T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    large, small = cut(224, 0.32, 1.0), cut(96, 0.05, 0.32)
    kinds = [(large, T.Compose([colours, soft(1.0), tensor])),
             (large, T.Compose([colours, soft(0.1), T.RandomSolarize(threshold=128, p=0.2), tensor])),
             *[(small, T.Compose([colours, soft(0.5), tensor]))] * 8]
    data = [Path(file).read_bytes() for file in files] * passes
    for first in range(0, len(data), 16):
        made = []
        for one in data[first:first + 16]:
            image = Image.open(io.BytesIO(one)).convert("RGB")
            made.append([change(crop(image)) for crop, change in kinds])
        for same in zip(*made, strict=True):
            torch.stack(same)
    return {"samples": len(data)}


def torchvision() -> dict[str, Any]:
    """Its version, "" where there is none: in this environment, or in the folder `peers` of it (`make .venv/peers`), whose operators need
    not load beside torch for CPUs alone, for no transform calls them."""
    sys.path.append(str(Path(sys.prefix) / "peers"))
    if importlib.util.find_spec("torchvision") is None:
        return {"version": ""}
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):     # where they load they are there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)       # operators live as long as their library
    return {"version": version("torchvision")}


_KEPT: list[Any] = []


def versions() -> dict[str, Any]:
    return {"versions": json.dumps({name: version(name) for name in ("pillow", "webdataset", "opencv-python-headless", "torch")})}


if __name__ == "__main__":
    serve({"crop": crop, "read": read, "end": end, "views": views, "torchvision": torchvision, "versions": versions})
