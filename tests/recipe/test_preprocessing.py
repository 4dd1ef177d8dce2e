"""How other libraries prepare images: what their files say is what is done here, pixel for pixel; what they leave out is said."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitscale.data.transform import Transform
from vitscale.errors import RecipeError
from vitscale.recipe.preprocessing import PROCESSORS, Preprocessing, prepared_by_timm, prepared_by_transformers

transformers = pytest.importorskip("transformers")
HELD = ("ViT", "Bit", "DeiT", "Beit", "ConvNext", "CLIP", "Siglip")         # DINOv3's and SigLIP 2's want torchvision


def ours(prepared: Preprocessing, image: Path) -> torch.Tensor:
    return Transform(prepared.image, 3, prepared.crop, prepared.mean, prepared.std, resize=prepared.resize, resampling=prepared.resampling,
                     half_even=prepared.half_even)(image)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, found = tmp_path_factory.mktemp("photos"), []
    for number, (height, width) in enumerate(((90, 141), (121, 60), (64, 64))):
        down, across = np.mgrid[:height, :width]
        pixels = np.stack([down * 255 // height, across * 255 // width, (down * across) % 255], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        found.append(folder / f"{number}.png")
    return found


def variants() -> list[tuple[str, dict[str, Any]]]:
    """What files say, for each class: each key by itself, and several at a time by chance."""
    changes: list[dict[str, Any]] = [
        {}, {"resample": 2}, {"resample": 3}, {"resample": 0}, {"resample": 1}, {"do_normalize": False}, {"do_rescale": False},
        {"rescale_factor": 1 / 127.5}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"size": {"height": 40, "width": 40}, "do_center_crop": False}, {"size": {"height": 48, "width": 40}, "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 37}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        # as older versions wrote sizes down
        {"size": 40}, {"size": [40, 40]}, {"size": [48, 40], "do_center_crop": True, "crop_size": 32},
        {"size": 40, "default_to_square": True}, {"size": 37, "do_center_crop": True, "crop_size": [32, 32]}]
    draw = random.Random(3)
    mixed = [dict(itertools.chain(*(one.items() for one in draw.sample(changes, 3)))) for _ in range(12)]
    return [(kind, change) for kind in HELD for change in changes + mixed]


@pytest.mark.parametrize("kind", HELD)
def test_what_a_file_says_is_done(kind: str, photos: list[Path]) -> None:
    followed = 0
    for name, change in variants():
        if name != kind:
            continue
        small = {"size": {"shortest_edge": 40} if "shortest_edge" in PROCESSORS[kind]["size"] else {"height": 40, "width": 40},
                 "crop_size": {"height": 32, "width": 32}}
        if kind == "ConvNext":
            size = change.get("size", 40)
            if isinstance(size, list) or "height" in str(size) or change.get("do_center_crop") or change.get("default_to_square"):
                continue        # its class knows none of them
            del small["crop_size"]
        theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**(small | change))
        for said in (json.loads(theirs.to_json_string()), small | change | {"image_processor_type": f"{kind}ImageProcessorFast"}):
            try:
                prepared = prepared_by_transformers(said, "vit", 32)
            except RecipeError:         # borders, or no square
                continue
            for photo in photos:
                expected = theirs(Image.open(photo).convert("RGB"), return_tensors="pt")["pixel_values"][0]
                found = ours(prepared, photo)
                assert found.shape == expected.shape, (said, prepared)
                scale = float(expected.max() - expected.min())
                assert (found - expected).abs().mean() < 0.004 * scale, (said, prepared, float((found - expected).abs().mean() / scale))
                assert (found - expected).abs().max() < 0.05 * scale, (said, prepared)
            followed += 1
    assert followed >= 6


@pytest.mark.parametrize("kind", HELD)
def test_what_a_class_takes_by_itself(kind: str) -> None:
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")().to_dict()
    for key, value in PROCESSORS[kind].items():
        if key in theirs:
            assert theirs[key] == (pytest.approx(value) if isinstance(value, (float, list)) else value), key


def test_what_is_left_out_is_said() -> None:
    said = prepared_by_transformers(None, "vit", 32).notes
    assert "no preprocessor_config.json" in said[0]
    assert "ViTImageProcessor's default, all of it squeezed to 32 x 32 by bilinear" in said[0]
    assert "does not say image_mean, image_std" in prepared_by_transformers({"size": 32, "resample": 3}, "swin", 32).notes[0]
    whole = {"image_mean": 0.5, "image_std": 0.5, "size": 32, "resample": 3}
    assert prepared_by_transformers(whole, "swin", 32).notes == ()
    assert "not the model's 48" in prepared_by_transformers(whole, "vit", 48).notes[0]
    assert "timm's default" in prepared_by_timm({}, 32).notes[0]
    assert prepared_by_timm({}, 32).mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("change", [
    {"do_resize": False}, {"resample": 9}, {"do_pad": True}, {"do_flip_channel_order": True}, {"frills": 3},
    {"size": {"longest_edge": 32}}, {"size": {"height": 32, "width": 48}}, {"size": {"shortest_edge": 32}},
    {"image_processor_type": "LevitImageProcessor"}, {"crop_size": None, "do_center_crop": True},
    {"crop_size": {"shortest_edge": 32}, "do_center_crop": True},
    {"size": "large"}, {"size": [32]}, {"crop_size": True, "do_center_crop": True}])
def test_what_cannot_be_followed_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        prepared_by_transformers({"size": 32} | change, "vit", 32)


@pytest.mark.parametrize("change", [{"crop_mode": "border"}, {"interpolation": "random"}, {"crop_pct": 1.1}])
def test_what_timm_asks_for_and_cannot_be_followed_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        prepared_by_timm({"pretrained_cfg": change}, 32)
