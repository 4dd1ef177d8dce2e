"""EXIF orientation: all eight against PIL, in every format that carries it, under both policies, and what stands in for a broken tag."""

import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitscale.data import open_index, open_stream
from vitscale.data.crop import DRAWS, CentreCrop, RandomCrop, reduction
from vitscale.data.decode import decode
from vitscale.data.draws import uniforms
from vitscale.data.orient import orientation, stored_box, swaps, upright
from vitscale.recipe.load import check_recipe

TURNS = range(1, 9)
HEIGHT, WIDTH = 301, 417


def picture():
    """Smooth, and the same in no two orientations."""
    row, column = np.mgrid[:HEIGHT, :WIDTH] / 40
    return Image.fromarray(np.stack([96 + 60 * np.sin(row) + 20 * column / 11, 128 + 90 * np.cos(row / 2 + column), 20 * row + 8 * column],
                                    axis=2).astype(np.uint8))


def encode(turn, format="JPEG", image=None, **options):
    exif = Image.Exif()
    exif[0x010F] = "maker of cameras"       # another tag before it
    exif[0x0112] = turn
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}), **options)
    return buffer.getvalue()


def turned(data):
    """The upright pixels by PIL, as a file without any orientation or loss."""
    buffer = io.BytesIO()
    ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def distance(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize("turn", TURNS)
def test_pixels_and_boxes_are_turned_as_by_pil(turn):
    stored = np.asarray(picture())
    exif = Image.open(io.BytesIO(encode(turn, "PNG")))
    want = np.asarray(ImageOps.exif_transpose(exif).convert("RGB"))
    assert (upright(stored, turn) == want).all()
    assert swaps(turn) == (want.shape[0] == WIDTH)
    for box in ((0, 0, 10, 20), (17, 33, 101, 57), (want.shape[0] - 50, want.shape[1] - 31, 50, 31)):
        top, left, h, w = box
        low, start, height, width = stored_box(box, HEIGHT, WIDTH, turn)
        assert (upright(stored[low:low + height, start:start + width], turn) == want[top:top + h, left:left + w]).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", TURNS)
def test_crops_are_drawn_in_the_upright_image(turn, format):
    data = encode(turn, format, **({"lossless": True} if format == "WEBP" else {}))
    assert orientation(data) == turn
    plain = turned(data)
    rules = [(CentreCrop(crop), ()) for crop in (0.875, 1.0)]
    rules += [(RandomCrop(), row.tolist()) for row in uniforms(0, 0, 0, range(4), 0, DRAWS)]
    for rule, draws in rules:
        for size in (64, 223):
            ours, want = decode(data, rule, size, 3, draws, exif=True), decode(plain, rule, size, 3, draws)
            assert ours.shape == want.shape
            coarse = format == "JPEG" and isinstance(rule, RandomCrop)          # it may have been decoded small
            assert distance(ours, want).mean() <= (1.5 if coarse else 0.5)
            assert coarse or distance(ours, want).max() <= 2                    # the two passes of resizing are rounded in another order


@pytest.mark.parametrize("turn", TURNS)
def test_a_large_crop_is_decoded_small_and_then_turned(turn):
    data = encode(turn, image=picture().resize((WIDTH * 3, HEIGHT * 3)))
    plain, rule = turned(data), RandomCrop((1.0, 1.0), (0.5, 2.0))
    found = 0
    for row in uniforms(1, 0, 0, range(3), 0, DRAWS):
        seen = (WIDTH * 3, HEIGHT * 3) if swaps(turn) else (HEIGHT * 3, WIDTH * 3)
        box = stored_box(rule.box(*seen, row), HEIGHT * 3, WIDTH * 3, turn)
        scale = reduction(box, 64)
        found += scale > 1
        assert box[2] > 64 * scale
        assert distance(decode(data, rule, 64, 3, row.tolist(), exif=True), decode(plain, rule, 64, 3, row.tolist())).mean() <= 1.5
    assert found == 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_it_is_ignored_unless_asked_for(format):
    options = {"lossless": True} if format == "WEBP" else {}
    plain = decode(encode(1, format, **options), CentreCrop(), 64)
    for turn in TURNS:
        assert (decode(encode(turn, format, **options), CentreCrop(), 64) == plain).all()
    assert (decode(encode(1, format, **options), CentreCrop(), 64, exif=True) == plain).all()


def test_grey_and_four_inks_are_turned_too():
    for mode in ("L", "CMYK"):
        data = encode(6, image=picture().convert(mode))
        stored, seen = (decode(data, CentreCrop(), 48, 1, exif=exif) for exif in (False, True))
        assert distance(seen, np.rot90(stored, -1)).max() <= 2


def tiff(order, *entries):
    body = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries)) + body


def jpeg_with(exif):
    plain = encode(1)
    length = struct.unpack_from(">H", plain, 4)[0]          # APP0
    rest = plain[4 + length:]
    assert rest[:2] == b"\xff\xe1"
    rest = rest[2 + struct.unpack_from(">H", rest, 2)[0]:]
    return plain[:4 + length] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + rest


@pytest.mark.parametrize(("exif", "turn"), [
    (tiff("<", (0x0112, 3, 1, 6)), 6), (tiff(">", (0x0100, 3, 1, 4), (0x0112, 3, 1, 8)), 8), (tiff(">", (0x0100, 3, 1, 4)), 1),
    (tiff("<", (0x0112, 3, 1, 9)), 1), (tiff("<", (0x0112, 3, 1, 0)), 1), (tiff("<", (0x0112, 2, 1, 6)), 1), (b"", 1), (b"II*\0", 1),
    (tiff("<", (0x0112, 3, 1, 6))[:14], 1), (b"XX" + tiff("<", (0x0112, 3, 1, 6))[2:], 1), (b"II*\0\xff\xff\xff\xff", 1),
])
def test_a_tag_that_cannot_be_understood_leaves_the_image_as_it_is(exif, turn):
    data = jpeg_with(b"Exif\0\0" + exif)
    assert orientation(data) == turn
    assert decode(data, CentreCrop(), 32, exif=True).shape == (32, 32, 3)


def test_other_bytes_have_none():
    assert [orientation(data) for data in (b"", b"BM", b"\xff\xd8", b"\xff\xd8\xff\xe1\0", b"\x89PNG\r\n\x1a\n", b"RIFF")] == [1] * 6
    assert orientation(jpeg_with(b"http://ns.adobe.com/xap/1.0/\0" + tiff("<", (0x0112, 3, 1, 6)))) == 1


@pytest.mark.parametrize(("policy", "split"), [("apply", "train"), ("ignore", "train"), ("apply", "val"), ("ignore", "val")])
def test_the_recipe_says_what_is_done(tmp_path, policy, split):
    urls = str(tmp_path / "s.tar")
    with tarfile.open(urls, "w") as tar:
        for turn in TURNS:
            for ext, raw in (("cls", b"0"), ("jpg", encode(turn))):
                info = tarfile.TarInfo(f"{turn}.{ext}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    recipe = check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 32, "patch": 4, "classes": 1},
        "data": {"train": urls, "lanes": 1, "workers": 1, "exif_orientation": policy, "augment": {"crop": "center"}},
        "optim": {"lr": 1e-3}, "global_batch": 8, "duration": "1 epochs",
    }, "test")
    with open_stream(recipe, open_index(urls), split, rank=0, world=1, micro_batch=8) as stream:
        micro = next(iter(stream)) if split == "val" else next(stream).micro[0]
    for sample, pixels in zip(micro.ids.tolist(), micro.images.numpy(), strict=True):
        assert (pixels == decode(encode(sample + 1), CentreCrop(), 32, exif=policy == "apply")).all()
        stored = decode(encode(1), CentreCrop(), 32)
        assert (distance(pixels, stored).mean() > 10) == (policy == "apply" and sample > 0)
