"""What is drawn for each image: rates, ranges and orders by the papers' and timm's rules; independent of the other images."""

import math

import numpy as np
import pytest

from vitscale.data.draws import ERASE, FLIP, JITTER, KEEP, MIX, RANDAUGMENT, THREE, group_uniforms, uniforms
from vitscale.data.policy import (
    RAND_AUGMENT,
    _matrix,
    _strength,
    blur_weights,
    color_jitter,
    erasures,
    operations,
    rand_augment,
    three_augment,
)
from vitscale.recipe.schema import Augment, Erasing, RandAugment

DRAWS = uniforms(3, 0, 0, range(6000), 0, KEEP)


def test_columns_do_not_overlap_and_keep_their_places():
    """Whoever moves a column changes every run that draws from it."""
    assert (FLIP, KEEP) == (22, 64)
    assert [slice(23, 28), slice(28, 30), slice(30, 44), slice(44, 64), slice(0, 5)] == [JITTER, THREE, ERASE, RANDAUGMENT, MIX]


def test_groups_and_samples_draw_apart():
    assert group_uniforms(3, 0, [4], 5)[0].tolist() != uniforms(3, 0, 0, [4], 0, 5)[0].tolist()
    assert (group_uniforms(3, 1, range(9), 5)[7] == group_uniforms(3, 1, [7], 8)[0, :5]).all()
    assert group_uniforms(3, 1, [7], 1)[0] != group_uniforms(3, 0, [7], 1)[0]


def test_repeats_draw_apart():
    both = uniforms(3, 0, 0, [5, 5, 6], np.array([0, 1, 1]), 8)
    assert (both[1] == uniforms(3, 0, 0, [5], 1, 8)[0]).all()
    assert (both[0] != both[1]).all()


def test_randaugment_draws_all_operations_alike():
    settings = RandAugment(num_ops=2, magnitude=9, magnitude_std=0.5, prob=0.5)
    stages = list(rand_augment(settings, DRAWS[:, RANDAUGMENT], 224))
    assert len(stages) == 2
    for stage in stages:
        names = {name: len(rows) / len(DRAWS) for name, (rows, _) in stage.items()}
        assert set(names) == set(RAND_AUGMENT) - {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"} | {"affine"}
        assert names.pop("affine") == pytest.approx(0.5 * 5 / 15, abs=0.02)
        assert all(rate == pytest.approx(0.5 / 15, abs=0.01) for rate in names.values())
        together = np.concatenate([rows for rows, _ in stage.values()])
        assert len(np.unique(together)) == len(together)
        bits = stage["posterize"][1][:, 0]
        assert set(bits) <= {0, 1, 2}                           # timm: 4 - int(0.9 * 4) = 1 at magnitude 9
        factor = stage["brightness"][1][:, 0]
        assert np.abs(np.abs(factor - 1).mean() - 0.81) < 0.02
        assert abs(np.mean(factor < 1) - 0.5) < 0.15
    first, second = (dict.fromkeys(stage["invert"][0].tolist()) for stage in stages)
    assert first != second
    alone = next(iter(rand_augment(RandAugment(prob=1.0, magnitude_std=0.0), DRAWS[17:18, RANDAUGMENT], 224)))
    assert sum(len(rows) for rows, _ in alone.values()) == 1


def test_each_row_of_parameters_is_that_images():
    settings = RandAugment(prob=1.0)
    for stage, single in zip(
            rand_augment(settings, DRAWS[:40, RANDAUGMENT], 64), rand_augment(settings, DRAWS[23:24, RANDAUGMENT], 64), strict=True):
        (name, (_, parameters)), = single.items()
        rows, all_parameters = stage[name]
        assert (all_parameters[rows == 23] == parameters).all()


@pytest.mark.parametrize(("name", "level", "sign", "increasing", "value"), [      # by hand from timm's level functions
    ("posterize", 9, 1, True, 1), ("posterize", 10, 1, True, 0), ("posterize", 10, 1, False, 4), ("posterize", 9, 1, False, 3),
    ("solarize", 9, 1, True, 26), ("solarize", 10, 1, True, 0), ("solarize", 10, 1, False, 256), ("solarize", 9, 1, False, 230),
    ("solarize_add", 9, 1, True, 99), ("solarize_add", 10, 1, False, 110),
    ("saturation", 9, 1, True, 1.81), ("contrast", 9, -1, True, 0.19), ("sharpness", 10, -1, True, 0.1),
    ("brightness", 10, -1, False, 1.9), ("brightness", 0, 1, False, 0.1), ("invert", 9, 1, True, 0),
])
def test_strengths_are_timms(name, level, sign, increasing, value):
    given = np.array([level / 10])
    assert _strength(name, given, sign * given, increasing) == pytest.approx(value)


def test_matrices_are_pils():
    assert _matrix("shear_x", 1.0, 100) == (1, pytest.approx(0.3), 0, 0, 1, 0)
    assert _matrix("shear_y", -0.5, 100) == (1, 0, 0, pytest.approx(-0.15), 1, 0)
    assert _matrix("translate_x", 1.0, 100) == (1, 0, pytest.approx(45), 0, 1, 0)
    assert _matrix("translate_y", -1.0, 224) == (1, 0, 0, 0, 1, pytest.approx(-100.8))
    assert _matrix("rotate", 0.0, 9) == (1, 0, 0, 0, 1, 0)
    a, b, c, d, e, f = _matrix("rotate", 0.4, 9)
    assert (a * 4.5 + b * 4.5 + c, d * 4.5 + e * 4.5 + f) == pytest.approx((4.5, 4.5))       # the middle stays
    assert a * e - b * d == pytest.approx(1)


def test_magnitudes_vary_as_asked_and_stay_in_range():
    stage = next(iter(rand_augment(RandAugment(prob=1.0, magnitude=5, magnitude_std=1.0), DRAWS[:, RANDAUGMENT], 224)))
    level = np.abs(stage["contrast"][1][:, 0] - 1) / 0.09
    assert level.mean() == pytest.approx(5, abs=0.2)
    assert level.std() == pytest.approx(1, abs=0.12)
    stage = next(iter(rand_augment(RandAugment(prob=1.0, magnitude=10, magnitude_std=5.0), DRAWS[:, RANDAUGMENT], 224)))
    assert stage["contrast"][1][:, 0].min() >= 0.1
    assert stage["contrast"][1][:, 0].max() == pytest.approx(1.9)
    fixed = next(iter(rand_augment(RandAugment(prob=1.0, magnitude=3, magnitude_std=0.0), DRAWS[:, RANDAUGMENT], 224)))
    assert np.unique(np.round(fixed["contrast"][1][:, 0], 9)).tolist() == [0.73, 1.27]


def test_three_augment_takes_one_of_three():
    stage = three_augment(DRAWS[:, THREE])
    assert {name: round(len(rows) / len(DRAWS), 1) for name, (rows, _) in stage.items()} == {"grey": 0.3, "solarize": 0.3, "blur": 0.3}
    assert sorted(np.concatenate([rows for rows, _ in stage.values()])) == list(range(len(DRAWS)))
    assert (stage["solarize"][1] == 128).all()
    weights = stage["blur"][1]
    assert (weights[:, 0] + 2 * weights[:, 1] + 2 * weights[:, 2] == 2**24).sum() > 0.3 * len(weights)
    assert (np.abs(weights[:, 0] + 2 * weights[:, 1] + 2 * weights[:, 2] - 2**24) <= 1).all()


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.0, 1.5, 2.0])
def test_three_boxes_have_the_gaussians_variance(radius):
    centre, near, far = (weight / 2**24 for weight in blur_weights(radius))
    assert 3 * (2 * near + 8 * far) == pytest.approx(radius**2, rel=1e-4)
    assert centre + 2 * near + 2 * far == pytest.approx(1, abs=1e-6)


def test_color_jitter_has_its_ranges_and_every_order():
    strengths = (0.4, 1.5, 0.0, 0.1)
    stages = list(color_jitter(strengths, DRAWS[:, JITTER]))
    orders = {}
    for turn, stage in enumerate(stages):
        assert "saturation" not in stage
        for name, (rows, _) in stage.items():
            assert len(rows) == pytest.approx(len(DRAWS) / 4, rel=0.1)
            for row in rows.tolist():
                orders.setdefault(row, []).append(name)
        values = stage["brightness"][1][:, 0]
        assert (values.min(), values.max()) == pytest.approx((0.6, 1.4), abs=0.01)
        values = stage["contrast"][1][:, 0]
        assert (values.min(), values.max()) == pytest.approx((0, 2.5), abs=0.01)
        assert values.mean() == pytest.approx(1.25, abs=0.06)
        values = stage["hue"][1][:, 0]
        assert set(values) == set(range(26)) | set(range(231, 256)), turn
    assert all(sorted(order) == ["brightness", "contrast", "hue"] for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 6


@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_erasing_takes_the_share_and_shape_asked_for(mode):
    erased = erasures(Erasing(prob=0.3, mode=mode), DRAWS[:, ERASE], 224)
    assert len(erased.rows) / len(DRAWS) == pytest.approx(0.3, abs=0.02)
    top, left, bottom, right = erased.boxes.T
    assert (erased.boxes >= 0).all()
    assert (bottom <= 224).all()
    assert (right <= 224).all()
    height, width = bottom - top, right - left
    share, ratio = height * width / 224**2, height / width
    assert (share.min(), share.max()) == pytest.approx((0.02, 1 / 3), abs=0.006)
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert np.abs(np.log(ratio)).max() <= math.log(10 / 3) + 0.06
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.05)
    assert erased.noise == (mode == "pixel")
    assert len(np.unique(erased.keys)) == len(erased.keys)
    assert np.mean(top / (224 - height)) == pytest.approx(0.5, abs=0.03)
    assert len(erasures(Erasing(prob=0.0), DRAWS[:, ERASE], 224).rows) == 0
    assert erasures(Erasing(prob=0.0), DRAWS[:, ERASE], 224).boxes.shape == (0, 4)


def test_what_no_try_fits_is_not_erased():
    assert len(erasures(Erasing(prob=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)), DRAWS[:, ERASE], 8).rows) == 0


def test_operations_of_a_batch_stand_in_order():
    assert operations(Augment(), DRAWS[:8], 224) is None
    wanted = operations(Augment(three_augment=True, color_jitter=(0.3, 0.3, 0.3, 0.0)), DRAWS[:50], 224)
    assert wanted is not None
    assert [part[1] for part in wanted.parts[1:]] == [part[2] for part in wanted.parts[:-1]]
    assert wanted.parts[-1][2] == len(wanted.rows) == len(wanted.parameters) == 50 * (1 + 3)
    assert {name for name, low, high in wanted.parts if high <= 50} == {"grey", "solarize", "blur"}
    for number in (0, 31):
        single = operations(Augment(three_augment=True, color_jitter=(0.3, 0.3, 0.3, 0.0)), DRAWS[number:number + 1], 224)
        names = [name for name, low, high in wanted.parts if number in wanted.rows[low:high]]
        assert names == [name for name, _, _ in single.parts]
        assert (wanted.parameters[wanted.rows == number] == single.parameters).all()
