"""Pixels against PIL, boxes against torchvision's rule, and every image that must be refused."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from vitscale.data import augment
from vitscale.data.bad import BadSample
from vitscale.data.crop import DRAWS, CentreCrop, RandomCrop, reduction
from vitscale.data.decode import decode, resize
from vitscale.data.draws import CROP, uniforms
from vitscale.data.image import image_size

CHINA, FLOWER = (Image.fromarray(picture) for picture in load_sample_images().images)       # 640 x 427 photographs

MIDDLE = (0, 106, 427, 427)     # of these, by CentreCrop(1.0)


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pil_crop(data, box, size, mode="RGB"):
    top, left, h, w = box
    image = Image.open(io.BytesIO(data)).convert(mode).crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, -1)


def pil_centre(data, crop, size):
    """Evaluation: shorter side to size / crop by bicubic, centre crop."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = math.floor(size / crop)
    w, h = image.size
    w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    left, top = (w - size) // 2, (h - size) // 2
    return np.asarray(image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size)))


def distance(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize(("image", "format", "options"), [
    (CHINA, "JPEG", {"quality": 90}), (FLOWER, "JPEG", {"quality": 70, "progressive": True}), (CHINA, "PNG", {}),
    (FLOWER, "WEBP", {"quality": 80}), (FLOWER, "BMP", {}),
])
@pytest.mark.parametrize("size", [32, 224])
def test_random_crops_are_those_of_pil(image, format, options, size, decoder):
    data, rule = encode(image, format, **options), RandomCrop()
    for row in uniforms(0, 0, 0, range(6), 0, DRAWS):
        pixels = decode(data, rule, size, 3, row.tolist())
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous            # else copying it into a batch takes longer than resizing
        box = rule.box(427, 640, row)
        scale = reduction(box, size) if format == "JPEG" else 1
        assert distance(pixels, pil_crop(data, box, size)) <= (2 if scale > 1 else 0.5)


@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("turn", [0, 90])
def test_centre_crops_are_those_of_timm(crop, turn, decoder):
    data = encode(CHINA.rotate(turn, expand=True), "PNG")
    for size in (48, 224, 384):
        assert distance(decode(data, CentreCrop(crop), size), pil_centre(data, crop, size)) <= 0.3


def test_what_is_resized_is_no_planes():
    """Copying planes into a batch would take longer than resizing.  Crops as wide as the image are whole stretches of memory."""
    pixels = np.array(CHINA)
    for height, width in ((427, 640), (200, 640), (427, 300), (1, 640), (1, 1), (9, 5)):
        for channels in (1, 3):
            crop = pixels[:height, :width, :channels]
            resized = [resize(one, *size) for size in ((224, 224), (8, 1), crop.shape[:2]) for one in (crop, crop.copy())]
            assert all(one.flags.c_contiguous for one in resized)
            assert all(np.array_equal(*pair) for pair in zip(resized[::2], resized[1::2], strict=True))


def test_tiny_images_are_enlarged_as_by_pil(decoder):
    data = encode(CHINA.resize((8, 8)).convert("L"), "PNG")
    assert distance(decode(data, CentreCrop(1.0), 28, 1), pil_crop(data, (0, 0, 8, 8), 28, "L")) <= 0.5
    assert (decode(data, CentreCrop(1.0), 8, 1)[:, :, 0] == np.asarray(Image.open(io.BytesIO(data)))).all()
    assert decode(encode(CHINA.resize((1, 300)), "PNG"), CentreCrop(0.875), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_palette_and_alpha_become_the_right_pixels(mode, channels):
    data = encode(FLOWER.convert(mode), "PNG")
    want = pil_crop(data, MIDDLE, 427, "RGB" if channels == 3 else "L")
    assert distance(decode(data, CentreCrop(1.0), 427, channels), want) <= 1         # the weights of grey are rounded differently


def test_sixteen_bits_are_scaled_not_cut():
    deep = (np.arange(64 * 64, dtype=np.uint32) * 16).astype(np.uint16).reshape(64, 64)
    pixels = decode(encode(Image.fromarray(deep), "PNG"), CentreCrop(1.0), 64, 1)[:, :, 0]
    assert np.abs(pixels.astype(int) - deep / 257).max() <= 1.01


def test_cmyk_and_orientation(decoder):
    cmyk = encode(FLOWER.convert("CMYK"), "JPEG", quality=95)
    assert distance(decode(cmyk, CentreCrop(1.0), 427), pil_crop(cmyk, MIDDLE, 427)) <= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(CHINA, "JPEG", exif=exif)
    assert (decode(turned, CentreCrop(1.0), 64) == decode(encode(CHINA, "JPEG"), CentreCrop(1.0), 64)).all()      # ignored


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_size_is_read_from_the_header(format):
    for width, height in ((640, 427), (3, 200)):
        assert image_size(encode(CHINA.resize((width, height)), format)) == (height, width)
    if format == "WEBP":
        assert image_size(encode(CHINA, format, lossless=True)) == (427, 640)
        assert image_size(encode(CHINA.convert("RGBA"), format, exif=b"Exif\0\0")) == (427, 640)


def bomb_png():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1:]


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "format"), (b"garbage", "format"), (b"GIF89a\x01\0\x01\0" + bytes(50), "decode"), (bytes(500), "format"), (bomb_png(), "bomb"),
    (encode(CHINA, "JPEG")[:9000], "truncated"), (encode(CHINA, "JPEG")[:4], "truncated"),
    (encode(CHINA, "JPEG", progressive=True)[:-900], "truncated"),
    (encode(CHINA, "PNG")[:-30], "truncated"), (encode(CHINA, "PNG")[:20], "truncated"), (flipped(encode(CHINA, "PNG"), 5000), "decode"),
    (encode(CHINA, "WEBP")[:-100], "truncated"), (b"\xff\xd8\xff\xd9", "truncated"), (b"BM" + bytes(60), "decode"),
    (b"8BPS" + bytes(60), "format"),
])
def test_what_cannot_be_an_image_is_refused(data, reason, decoder):
    with pytest.raises(BadSample) as caught:
        decode(data, CentreCrop(), 32)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_crops_decoded_small_are_near_those_of_pil(decoder):
    """The mean of the absolute difference over an image, in 255ths: 1 at most on average, 3 at worst.  With the box half a pixel of what
    was decoded beside its place it would be larger."""
    found, moved, rule = [], [], RandomCrop()
    for image, quality in ((CHINA, 90), (FLOWER, 75)):
        for width, height in ((640, 427), (633, 421)):
            data = encode(image.resize((width, height), Image.Resampling.LANCZOS), "JPEG", quality=quality)
            for row in uniforms(0, 0, 0, range(12), 0, DRAWS).tolist():
                box = rule.box(height, width, row)
                for size in (32, 64, 96, 128):
                    scale = reduction(box, size)
                    if scale == 1:
                        continue
                    ours = decode(data, rule, size, 3, row)
                    found.append(distance(ours, pil_crop(data, box, size)))
                    top = box[0] + (scale // 2 if box[0] + box[2] + scale // 2 <= height else -(scale // 2))
                    moved.append(distance(ours, pil_crop(data, (top, *box[1:]), size)))
    assert len(found) > 60
    assert np.mean(found) <= 1
    assert max(found) <= 3
    assert (np.array(moved) > found).all()


def test_how_small_a_crop_is_decoded():
    assert [reduction((0, 0, side, 5000), 224) for side in (100, 224, 671, 672, 1343, 1344, 2687, 2688)] == [1, 1, 1, 2, 2, 4, 4, 8]
    assert reduction((0, 0, 5000, 100), 224) == 1
    whole = [1.0 - 2**-53, 0.5] * 10 + [0.0, 0.0]
    square = RandomCrop((1.0, 1.0), (1.0, 1.0))
    for image in (CHINA.convert("CMYK"), CHINA.convert("L"), CHINA):
        data = encode(image.crop((0, 0, 400, 400)), "JPEG", quality=95)
        assert distance(decode(data, square, 40, draws=whole), pil_crop(data, (0, 0, 400, 400), 40)) <= 1.5
    evaluated = encode(CHINA, "JPEG")
    assert distance(decode(evaluated, CentreCrop(1.0), 32), pil_centre(evaluated, 1.0, 32)) <= 0.3


# Boxes

def test_boxes_are_spread_as_asked():
    rule = RandomCrop((0.2, 0.8), (0.5, 2.0))
    boxes = np.array([rule.box(1000, 1000, row) for row in uniforms(0, 0, 0, range(4000), 0, DRAWS)])
    top, left, h, w = boxes.T
    assert (boxes >= 0).all()
    assert (top + h <= 1000).all()
    assert (left + w <= 1000).all()
    share, ratio = h * w / 1e6, np.log(w / h)
    assert share.min() > 0.19
    assert share.max() < 0.81
    assert np.abs(ratio).max() <= math.log(2) + 0.01
    small = share < 0.5                                         # where every ratio fits: area and log ratio are uniform
    assert abs(np.mean(share[small]) - 0.35) < 0.01
    assert abs(np.mean(ratio[small])) < 0.03
    assert abs(np.mean(top / np.maximum(1000 - h, 1)) - 0.5) < 0.02
    assert abs(np.mean(left / np.maximum(1000 - w, 1)) - 0.5) < 0.02


@pytest.mark.parametrize(("height", "width", "box"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))])
def test_images_that_no_ratio_fits_give_their_centre(height, width, box):
    assert RandomCrop((0.9, 1.0)).box(height, width, [0.5] * DRAWS) == box


def test_a_box_takes_its_first_fitting_try():
    draws = [0.5] * DRAWS
    draws[:2], draws[-2:] = (1.0 - 2**-53, 1.0 - 2**-53), (0.0, 1.0 - 2**-53)       # the whole area at 4:3 does not fit a square
    assert RandomCrop().box(100, 100, draws) == (0, 27, 73, 73)
    assert RandomCrop().box(100, 100, [*draws[:-2], draws[-1], 0.0]) == (27, 0, 73, 73)
    assert RandomCrop((1.0, 1.0), (1.0, 1.0)).box(100, 100, draws) == (0, 0, 100, 100)
    assert CROP.stop - CROP.start == DRAWS == len(draws)


# On the device

def test_flip_and_normalise():
    images = torch.randint(0, 256, (4, 5, 5, 3), dtype=torch.uint8)
    flip = torch.tensor([True, False, False, True])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = augment.apply(images, flip, mean, std)
    assert out.shape == (4, 3, 5, 5)
    assert out.is_contiguous()
    for one in range(4):
        for channel in range(3):
            plane = images[one, :, :, channel].numpy()[:, ::-1 if flip[one] else 1]
            assert np.allclose(out[one, channel], (plane / 255 - mean[channel]) / std[channel], atol=1e-6)
    grey = augment.apply(images[..., :1], None, mean, std, torch.bfloat16)
    assert grey.dtype == torch.bfloat16
    assert torch.allclose(grey.float(), (images[..., :1].permute(0, 3, 1, 2) / 255 - 0.2) / 0.6, atol=2e-2)
