"""Digits with a mask beside each image, and what a recipe says to have features judged by them."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np

MASKS = ("data.val=data/masked/val-*.tar", "data.mask=mask.png", "data.mask_classes=2",
         "evaluate.features=[knn, linear, rankme, segmentation]")


def masked(digits: Path, folder: Path) -> None:
    """The validation shards of packed digits again, in a new folder."""
    folder.mkdir()
    for shard in digits.glob("val-*.tar"):
        with_masks(shard, folder / shard.name)


def with_masks(shard: Path, target: Path) -> None:
    """The same with a mask for each image: where there is ink."""
    with tarfile.open(shard) as given, tarfile.open(target, "w") as tar:
        for member in given:
            data = given.extractfile(member).read()     # type: ignore[union-attr]
            tar.addfile(member, io.BytesIO(data))
            if member.name.endswith(".png"):
                ink = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) > 100).astype(np.uint8)
                mask = cv2.imencode(".png", ink)[1].tobytes()
                info = tarfile.TarInfo(member.name.replace(".png", ".mask.png"))
                info.size = len(mask)
                tar.addfile(info, io.BytesIO(mask))
