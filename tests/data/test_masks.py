"""Masks of an evaluation: read exactly, cut as the image is, refused where there are none or they say what there is not."""

import io
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from vitscale.data import open_index, open_stream
from vitscale.data.bad import BadSample
from vitscale.data.crop import CentreCrop
from vitscale.data.decode import decode
from vitscale.data.mask import UNLABELLED, MaskRule, check_masks, cut_mask, read_mask
from vitscale.errors import DataError
from vitscale.recipe.load import check_recipe


def numbers(height: int, width: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(0, classes, (height, width), np.uint8)


def png(pixels: np.ndarray, mode: str = "L", bits: int | None = None) -> bytes:
    image = Image.fromarray(pixels, "L")
    if mode == "P":
        image.putpalette(bytes(reversed(range(256))) * 3)       # a palette's colours mean nothing
    elif mode == "1":
        image = Image.fromarray(pixels * 255).convert("1")
    out = io.BytesIO()
    image.save(out, "PNG", **({"bits": bits} if bits else {}))
    return out.getvalue()


def grey_of_few_bits(pixels: np.ndarray, bits: int) -> bytes:
    """As no library writes it any more, yet older data sets are."""
    import struct
    import zlib

    rows = b""
    for row in pixels:
        packed = int("".join(format(value, f"0{bits}b") for value in row).ljust(-(-len(row) * bits // 8) * 8, "0"), 2)
        rows += b"\0" + packed.to_bytes(-(-len(row) * bits // 8), "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("coded", "classes"), [
    (lambda one: png(one), 256), (lambda one: png(one, "P"), 256), (lambda one: png(one, "P", 4), 16), (lambda one: png(one, "P", 2), 4),
    (lambda one: png(one, "1"), 2), (lambda one: grey_of_few_bits(one, 4), 16), (lambda one: grey_of_few_bits(one, 2), 4)],
    ids=["grey", "palette", "palette of 4 bits", "palette of 2 bits", "1 bit", "grey of 4 bits", "grey of 2 bits"])
def test_each_pixel_has_the_number_that_is_written(coded: Any, classes: int) -> None:
    wanted = numbers(13, 7, classes)
    assert (read_mask(coded(wanted)) == wanted).all()


@pytest.mark.parametrize(("data", "word"), [
    (cv2.imencode(".jpg", numbers(8, 8, 9))[1].tobytes(), "JPEG"),
    (cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), "RGB"),
    (cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes(), "I;16"), (png(numbers(30, 30, 9))[:-60], "mask"), (b"", "mask")],
    ids=["JPEG", "colours", "16 bits", "cut off", "nothing"])
def test_what_is_no_mask_is_a_bad_sample(data: bytes, word: str) -> None:
    with pytest.raises(BadSample, match=word) as refused:
        read_mask(data)
    assert refused.value.reason == "label"


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (40, 71), (16, 90), (9, 9), (224, 300)])
@pytest.mark.parametrize("crop", [0.5, 0.875, 1.0])
def test_it_is_cut_where_the_image_is(shape: tuple[int, int], crop: float) -> None:
    """A step from one class to the other lies where the image's does, to a pixel."""
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] * 2 // 5:, shape[1] * 3 // 7:] = 1
    seen = decode(cv2.imencode(".png", mask * 255)[1].tobytes(), CentreCrop(crop), 32, 1)[:, :, 0]
    found = cut_mask(mask, CentreCrop(crop), 32)
    inside = (seen < 30) | (seen > 225)
    assert inside.mean() > 0.7
    assert ((found == 1) == (seen > 127))[inside].all()


def write(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for ext, data in members.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def recipe(shards: Path) -> Any:
    return check_recipe({
        "name": "t", "model": {"width": 16, "depth": 1, "heads": 2, "mlp": 16, "image": 16, "patch": 4, "channels": 1, "classes": 0},
        "data": {"train": str(shards), "val": str(shards), "mask": "mask.png", "mask_classes": 5, "workers": 1, "max_bad_fraction": 1.0,
                 "views": [{"name": "both", "count": 2}]},
        "objective": {"name": "lejepa"}, "evaluate": {"features": ["segmentation"]}, "optim": {"lr": 1e-3}, "global_batch": 4,
        "duration": "1 steps", "parallel": {"device": "cpu"}}, "t")


def test_an_evaluation_brings_masks_and_a_bad_one_costs_its_sample_alone(tmp_path: Path) -> None:
    sizes = {"a": (20, 20), "b": (24, 20), "c": (20, 20), "d": (20, 20)}
    masks = {key: numbers(*size, 5, seed) for seed, (key, size) in enumerate(sizes.items())}
    masks["a"][:9] = UNLABELLED
    samples = {key: {"png": png(numbers(*size, 256)), "mask.png": png(masks[key])} for key, size in sizes.items()}
    samples["c"]["mask.png"] = b"garbage"
    samples["d"]["mask.png"] = png(numbers(20, 21, 5))
    write(tmp_path / "s.tar", samples)
    found: list[dict[str, Any]] = []
    with open_stream(recipe(tmp_path / "s.tar"), open_index(str(tmp_path / "s.tar")), "val", rank=0, world=1, micro_batch=5,
                     on_bad=found.append) as stream:
        micro, = stream
    assert micro.weight.tolist() == [1, 1, 0, 0, 0]
    assert micro.masks is not None
    for slot, key in enumerate("ab"):
        assert torch.equal(micro.masks[slot], torch.from_numpy(cut_mask(masks[key], CentreCrop(0.875), 16)))
    assert (micro.masks[2:] == UNLABELLED).all()
    assert [row["reason"] for row in found] == ["label", "label"]
    assert "20 x 21 pixels, the image 20 x 20" in found[1]["detail"]


@pytest.mark.parametrize(("member", "words"), [
    ({}, "has no 'mask.png' member (it has png); name the masks with data.mask, or leave segmentation out"),
    ({"mask.png": png(np.full((8, 8), 5, np.uint8))}, "has a pixel of class 5, but data.mask_classes is 5 (classes 0 to 4, 255"),
    ({"mask.png": b"garbage"}, "wanted is a PNG with a class number at each pixel")], ids=["none", "too large", "garbage"])
def test_a_set_without_masks_is_refused_before_a_run(tmp_path: Path, member: dict[str, bytes], words: str) -> None:
    write(tmp_path / "s.tar", {"a": {"png": png(numbers(8, 8, 256)), **member}})
    with pytest.raises(DataError) as refused:
        check_masks(open_index(str(tmp_path / "s.tar")), MaskRule("mask.png", 5))
    assert words in str(refused.value)
    assert "sample 'a'" in str(refused.value)
