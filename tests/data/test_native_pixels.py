"""The native augmentation gives torch's pixels to the last bit, whatever is asked in whatever order, and refuses what does not fit."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data import augment, native
from vitscale.data.augment import Ops
from vitscale.data.draws import COLOURS, KEEP, uniforms
from vitscale.data.pixels import OPERATIONS
from vitscale.data.policy import _matrix, blur_weights, operations
from vitscale.recipe.schema import Augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRONG = {"scale": [0.05, 0.32], "color_jitter": [0.9, 0.9, 0.9, 0.5], "color_jitter_prob": 0.9, "grey": 0.2, "blur": 0.8,
          "blur_radius": [0.1, 2.0], "solarize": 0.4}
POLICIES = [Augment(**STRONG), Augment(rand_augment={"num_ops": 5, "magnitude": 9, "magnitude_std": 1.0}), Augment(three_augment=True)]


@pytest.fixture(autouse=True)
def there():
    if not native.available():
        assert not os.environ.get("CI"), native.describe()
        pytest.skip(native.describe())


def both(images, flip=None, ops=None, mean=MEAN, std=STD):
    """By the native code and by torch."""
    natively = augment.apply(images, flip, mean, std, ops=ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_module", None)
        return natively, augment.apply(images, flip, mean, std, ops=ops)


def random_images(rng, count, height, width, channels):
    """Noise, photographs' gentle slopes, few colours, one colour, black, white, a colour channel that is 0 or 255."""
    kinds = [lambda: rng.integers(0, 256, (height, width, channels)),
             lambda: (np.add.outer(np.arange(height), np.arange(width))[..., None] * rng.random(channels) * 3 + rng.random() * 200) % 256,
             lambda: rng.integers(0, 2, (height, width, channels)) * 255,
             lambda: np.broadcast_to(rng.integers(0, 256, channels), (height, width, channels)),
             lambda: np.zeros((height, width, channels)), lambda: np.full((height, width, channels), 255),
             lambda: np.repeat(rng.integers(0, 256, (height, width, 1)), channels, 2),
             lambda: rng.integers(0, 256, (height, width, channels)) * (np.arange(channels) != rng.integers(3))]
    return torch.from_numpy(np.stack([kinds[rng.integers(len(kinds))]().astype(np.uint8) for _ in range(count)]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 33, 64, 97]), st.sampled_from([1, 3]), st.sampled_from(POLICIES))
def test_what_recipes_draw_comes_out_as_by_torch(seed, size, channels, policy):
    rng = np.random.Generator(np.random.Philox(seed))
    count = int(rng.integers(1, 9))
    ids = list(range(count))
    drawn = operations(policy, uniforms(seed, 0, 0, ids, 0, KEEP), size, uniforms(seed, 0, 0, ids, 0, 8, COLOURS.start))
    flip = torch.from_numpy(rng.random(count) < 0.5)
    natively, by_torch = both(random_images(rng, count, size, size, channels), flip, Ops.of(drawn))
    assert torch.equal(natively, by_torch)


def parameters_of(name, rng, size):
    """At random, among them the least and the most of each."""
    if name == "affine":
        return _matrix(str(rng.choice(["rotate", "shear_x", "translate_y"])), float(rng.choice([-1, 1, 0, 2 * rng.random() - 1])), size)
    if name == "blur":
        return blur_weights(float(rng.choice([0.1, 2.0, 2.39, 1.41, 1.42, 0.1 + 1.9 * rng.random()])))
    choices = {"hue": [0, 1, 127, 128, 255, rng.integers(256)], "solarize": [0, 1, 128, 255, 256, rng.integers(257)],
               "solarize_add": [0, 110, rng.integers(111)], "posterize": range(9)}
    return (float(rng.choice(choices.get(name, [0, 1, 2, 1.9, 0.1, 3 * rng.random(), 300]))),)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 3]))
def test_any_operations_in_any_order_on_any_shape_come_out_as_by_torch(seed, height, width, channels):
    rng = np.random.Generator(np.random.Philox(seed))
    count, parts, rows, parameters, at = int(rng.integers(1, 5)), [], [], [], 0
    for name in rng.choice(list(OPERATIONS), int(rng.integers(8))):
        several = rng.permutation(count)[:rng.integers(1, count + 1)]
        given_to = np.zeros((len(several), 6))
        for row in given_to:
            numbers = parameters_of(name, rng, min(height, width))
            row[:len(numbers)] = numbers
        parts.append((str(name), at, at + len(several)))
        rows.append(several)
        parameters.append(given_to)
        at += len(several)
    ops = Ops(tuple(parts), torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *rows])),
              torch.from_numpy(np.concatenate([np.zeros((0, 6)), *parameters])))
    images = random_images(rng, count, height, width, channels)
    before, flip = images.clone(), torch.from_numpy(rng.random(count) < 0.5)
    natively, by_torch = both(images, flip, ops)
    assert torch.equal(natively, by_torch)
    assert torch.equal(images, before)


def of_colours(colours, shift):
    images = torch.from_numpy(np.array(colours, np.uint8)).view(1, 1, -1, 3)
    return both(images, ops=Ops((("hue", 0, 1),), torch.tensor([0]), torch.full((1, 6), float(shift), dtype=torch.float64)))


def test_hue_is_that_of_torch_for_every_quotient_and_every_turn():
    """The hue follows from two quotients of differences and from which channel is highest; the saturation from one of 256 x 256."""
    one, other = (axis.ravel() for axis in np.meshgrid(np.arange(256), np.arange(256)))
    low = np.zeros_like(one)
    colours = np.concatenate([np.stack(order, 1) for order in (
        (one, other, low), (other, low, one), (low, one, other), (one, np.minimum(one, other), np.minimum(one, other)))])
    assert torch.equal(*of_colours(colours, 37))
    some = np.random.Generator(np.random.Philox(5)).integers(0, 256, (500, 3))
    for shift in range(256):
        assert torch.equal(*of_colours(some, shift))


@pytest.mark.all        # sixteen million colours, half a minute
@pytest.mark.parametrize("shift", [0, 91, 255])
def test_hue_is_that_of_torch_for_every_colour(shift):
    for red in range(0, 256, 16):
        colours = np.stack(np.meshgrid(np.arange(red, red + 16), np.arange(256), np.arange(256)), -1).reshape(-1, 3)
        assert torch.equal(*of_colours(colours, shift))


def test_normalising_is_that_of_torch_to_the_last_bit():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3)
    rng = np.random.Generator(np.random.Philox(1))
    for _ in range(20):
        mean, std = rng.random(3).tolist(), (0.01 + rng.random(3)).tolist()
        for images in (levels, levels[..., :1]):
            assert torch.equal(*both(images, mean=mean, std=std))


def test_what_does_not_go_together_is_refused():
    def call(**changes):
        parts = {"images": np.zeros((2, 4, 5, 3), np.uint8), "flip": np.zeros(2, bool), "out": np.zeros((2, 3, 4, 5), np.float32),
                 "count": 2, "height": 4, "width": 5, "channels": 3, "first": np.array([0, 1, 2]), "codes": np.array([0, 13]),
                 "parameters": np.ones((2, 6)), "fill": np.zeros(3, np.uint8), "table": np.zeros((3, 256), np.float32), **changes}
        native._module.augment(*parts.values())

    call()
    call(images=np.zeros(0, np.uint8), out=np.zeros(0, np.float32), count=0, flip=np.zeros(0, bool), first=np.array([0]),
         codes=np.zeros(0, np.int64), parameters=np.zeros((0, 6)))
    wrong = [
        {"count": 3}, {"count": -2}, {"height": 3}, {"height": 0}, {"height": -4, "width": -5}, {"width": 2**31 - 1}, {"channels": 2},
        {"channels": 1}, {"images": np.zeros(119, np.uint8)}, {"images": np.zeros(121, np.uint8)}, {"flip": np.zeros(1, bool)},
        {"out": np.zeros(119, np.float32)}, {"out": np.zeros(120, np.float64)}, {"first": np.array([0, 1])}, {"first": np.array([0, 3, 2])},
        {"first": np.array([1, 1, 2])}, {"first": np.array([0, 1, 3])}, {"first": np.array([-1, 1, 2])}, {"codes": np.array([0, 14])},
        {"codes": np.array([-1, 0])}, {"codes": np.array([0])}, {"parameters": np.ones((2, 5))}, {"fill": np.zeros(2, np.uint8)},
        {"table": np.zeros((2, 256), np.float32)}, {"parameters": np.ones(13).view(np.uint8)[4:-4]},
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match="do not go together"):
            call(**changes)
    with pytest.raises((ValueError, BufferError, TypeError)):
        call(images=np.zeros((2, 4, 10, 3), np.uint8)[:, :, ::2])
    out = np.zeros((2, 3, 4, 5), np.float32)
    out.flags.writeable = False
    with pytest.raises((ValueError, BufferError, TypeError)):
        call(out=out)
    for rows in ([0, 2], [-1, 1]):       # an image that is not there
        with pytest.raises(ValueError, match="do not go together"):
            native.augment(np.zeros((2, 4, 5, 3), np.uint8), np.zeros(2, bool), (("grey", 0, 2),), np.array(rows), np.ones((2, 6)),
                           np.zeros(3, np.uint8), np.zeros((3, 256), np.float32), np.zeros((2, 3, 4, 5), np.float32))


def test_views_of_tensors_and_no_images_at_all_are_taken():
    images = random_images(np.random.Generator(np.random.Philox(2)), 6, 12, 12, 3)
    for some in (images[::2], images[:0], images.flip(2), images[:, :, :7]):
        assert torch.equal(*both(some, torch.ones(len(some), dtype=torch.bool)))
