"""Every operation on pixels against PIL, by torch and by the native code: equal, but for affine's few pixels that differ by one."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from vitscale.data import native
from vitscale.data.pixels import OPERATIONS
from vitscale.data.policy import _matrix, blur_weights

SIZE = 75
FILL = (124, 116, 104)


def pictures(size):
    """Two photographs, noise, a plane, one of few colours, one of a narrow range, greys with red."""
    photos = [np.asarray(Image.fromarray(photo).resize((size, size))) for photo in load_sample_images().images]
    noise = np.random.Generator(np.random.Philox(0)).integers(0, 256, (size, size, 3), np.uint8)
    greys = np.repeat(photos[0][:, :, :1], 3, axis=2)
    greys[:, : size // 2, 0] = 255
    return [*photos, noise, np.full((size, size, 3), 42, np.uint8), photos[1] // 80 * 80, photos[0] // 4 + 30, greys]


PICTURES = pictures(SIZE)


def ours(name, parameters, images=PICTURES):
    """Each image with its own row of parameters; by torch, and the same by the native code where that was built."""
    rows = torch.zeros(len(images), 6, dtype=torch.float64)
    given = torch.tensor(parameters, dtype=torch.float64).view(len(images), -1)
    rows[:, :given.shape[1]] = given
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    before = x.clone()
    out = OPERATIONS[name](x, rows, torch.tensor(FILL, dtype=torch.uint8)[:x.shape[1]])
    assert torch.equal(x, before)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    if native.available():
        natively, levels = np.empty(out.shape, np.float32), np.tile(np.arange(256, dtype=np.float32), (out.shape[1], 1))
        native.augment(np.stack(images), np.zeros(len(images), bool), ((name, 0, len(images)),), np.arange(len(images)), rows.numpy(),
                       np.array(FILL, np.uint8)[:out.shape[1]], levels, natively)
        assert np.array_equal(natively, out.numpy())
    return out.permute(0, 2, 3, 1).numpy()


def pil(function, parameters):
    return np.stack([np.asarray(function(Image.fromarray(image), one)) for image, one in zip(PICTURES, parameters, strict=True)])


FACTORS = [0.1, 0.35, 0.999, 1.0, 1.3, 1.9, 0.0]


@pytest.mark.parametrize(("name", "enhance"), [
    ("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color),
    ("sharpness", ImageEnhance.Sharpness),
])
def test_enhancers_equal_pils(name, enhance):
    for turn in range(len(FACTORS)):
        factors = FACTORS[turn:] + FACTORS[:turn]
        assert (ours(name, factors) == pil(lambda image, factor: enhance(image).enhance(factor), factors)).all()


@pytest.mark.parametrize(("name", "function", "parameters"), [
    ("invert", lambda image, _: ImageOps.invert(image), [0] * 7),
    ("autocontrast", lambda image, _: ImageOps.autocontrast(image), [0] * 7),
    ("equalize", lambda image, _: ImageOps.equalize(image), [0] * 7),
    ("grey", lambda image, _: ImageOps.grayscale(image).convert("RGB"), [0] * 7),
    ("solarize", ImageOps.solarize, [0, 1, 26, 128, 200, 255, 256]),
    ("posterize", ImageOps.posterize, [1, 2, 3, 4, 5, 7, 8]),
    ("solarize_add", lambda image, add: image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3),
     [0, 1, 40, 99, 110, 50, 7]),
])
def test_tables_equal_pils(name, function, parameters):
    for turn in range(7):
        given = parameters[turn:] + parameters[:turn]
        assert (ours(name, given) == pil(function, given)).all()


def test_posterize_to_no_bits_is_black():
    assert (ours("posterize", [0] * 7) == 0).all()


def test_equalize_stays_in_range_when_a_step_is_one_pixel():
    """More levels than 255 steps of a single pixel would pass the end of the table; PIL cuts them off."""
    images = [np.asarray(Image.fromarray(image).resize((22, 22))) for image in PICTURES]
    for image, out in zip(images, ours("equalize", [0] * 7, images), strict=True):
        assert (out == np.asarray(ImageOps.equalize(Image.fromarray(image)))).all()


def turn_hue(image, shift):
    """torchvision's adjust_hue on PIL images."""
    h, s, v = image.convert("HSV").split()
    turned = Image.fromarray(((np.asarray(h).astype(int) + shift) % 256).astype(np.uint8))
    return Image.merge("HSV", (turned, s, v)).convert("RGB")


def test_hue_equals_pils():
    for shifts in ([0, 1, 20, 127, 128, 200, 255], [51] * 7):
        assert (ours("hue", shifts) == pil(turn_hue, shifts)).all()


@pytest.mark.parametrize("radii", [[0.1, 0.2, 0.5, 0.77, 1.0, 1.2, 1.41], [1.42, 1.5, 1.6, 1.75, 1.8, 1.99, 2.0]])
def test_blur_equals_pils(radii):
    weights = [blur_weights(radius) for radius in radii]
    assert (ours("blur", weights) == pil(lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)), radii)).all()


def same_but_few(a, b):
    """At most 1 of 255 apart, and that in at most 3 % of the values: single precision cuts off on the other side of a whole number."""
    apart = np.abs(a.astype(int) - b.astype(int))
    return apart.max() <= 1 and (apart > 0).mean() <= 0.03


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_affine_moves_as_pil(name):
    amounts = [-1.0, -0.6, -0.1, 0.0, 0.3, 0.9, 1.0]

    def moved(image, amount):
        matrix = {"shear_x": (1, 0.3 * amount, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.3 * amount, 1, 0),
                  "translate_x": (1, 0, 0.45 * amount * SIZE, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, 0.45 * amount * SIZE)}[name]
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=FILL)

    assert same_but_few(ours("affine", [_matrix(name, amount, SIZE) for amount in amounts]), pil(moved, amounts))


@pytest.mark.parametrize("size", [75, 32])
def test_rotation_is_pils(size, monkeypatch):
    images = pictures(size)
    monkeypatch.setattr(f"{__name__}.PICTURES", images)
    amounts = [-1.0, -0.6, -0.1, 0.01, 0.3, 0.9, 1.0]
    out = ours("affine", [_matrix("rotate", amount, size) for amount in amounts], images)
    assert same_but_few(out, pil(lambda image, amount: image.rotate(
        30 * amount, resample=Image.Resampling.BILINEAR, fillcolor=FILL), amounts))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_comes_out_the_same_in_any_batch(name):
    parameters = {"affine": _matrix("rotate", 0.7, SIZE), "blur": blur_weights(1.3), "posterize": (3,), "solarize": (99,)}
    given = parameters.get(name, (1.37,))
    together = ours(name, [given] * 7)
    for number, image in enumerate(PICTURES):
        assert (ours(name, [given], [image])[0] == together[number]).all()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_greys_stay_greys_and_small_images_pass(name, size):
    images = [image[:size, :size, :1] for image in PICTURES]
    parameters = {"affine": _matrix("rotate", 0.7, size), "blur": blur_weights(1.3), "posterize": (3,), "hue": (50,)}
    grey = ours(name, [parameters.get(name, (1.37,))] * 7, images)
    triple = ours(name, [parameters.get(name, (1.37,))] * 7, [np.repeat(image, 3, axis=2) for image in images])
    if name != "affine":            # the filling has a colour
        assert (triple == grey).all()
