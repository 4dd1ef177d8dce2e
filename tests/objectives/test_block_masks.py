"""Which patches are hidden: how many, how often, in blocks, by the draws alone."""

import math
import random

import numpy as np
import pytest

from vitscale.data.draws import uniforms
from vitscale.objectives.block_masks import BlockMasks


def masks_of(sampler, count, seed=1):
    draws = uniforms(seed, 0, 0, range(count), 0, sampler.num_draws)
    return sampler.of(draws).reshape(count, *sampler.grid)


def published(grid, share, count):
    """DINOv2's loop as the papers tell it, from Python's generator: shares of many images, how often each patch is hidden, how blocky."""
    dice, (height, width) = random.Random(5), grid
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        left = int(dice.uniform(*share) * height * width)
        while left > 0:
            for _ in range(10):
                area, aspect = dice.uniform(4, left), math.exp(dice.uniform(math.log(0.3), -math.log(0.3)))
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if w < width and h < height:
                    top, at = dice.randint(0, height - h), dice.randint(0, width - w)
                    new = h * w - mask[top:top + h, at:at + w].sum()
                    if 0 < new <= left:
                        mask[top:top + h, at:at + w] = True
                        break
            else:
                break
            left -= new
        flat = mask.reshape(-1)
        free = np.flatnonzero(~flat)
        flat[dice.sample(list(free), max(left, 0))] = True
    return masks


def blockiness(masks):
    """Of neighbours side by side, how many are hidden together or seen together; 1 would be a single block."""
    return (masks[:, :, 1:] == masks[:, :, :-1]).mean()


def test_the_distribution_is_the_published_one():
    sampler, count = BlockMasks((14, 14), probability=1.0), 1500
    ours, theirs = masks_of(sampler, count), published((14, 14), (0.1, 0.5), count)
    assert np.sort(ours.mean(axis=(1, 2))) == pytest.approx(np.sort(theirs.mean(axis=(1, 2))), abs=0.03)
    errors = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / math.sqrt(2 * 0.25 / count)      # standard ones, patch by patch
    assert errors.max() < 5
    assert blockiness(ours) == pytest.approx(blockiness(theirs), abs=0.01)
    alone = np.random.default_rng(1).random(ours.shape) < ours.mean(axis=(1, 2), keepdims=True)
    assert blockiness(ours) > blockiness(alone) + 0.15


@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 16), (16, 16), (1, 8)])
@pytest.mark.parametrize(("probability", "share"), [(0.5, (0.1, 0.5)), (1.0, (0.3, 0.3)), (0.2, (0.9, 1.0)), (0.0, (0.5, 0.5))])
def test_a_mask_meets_its_share_exactly_and_its_probability_in_the_mean(grid, probability, share):
    sampler = BlockMasks(grid, probability, share)
    draws = uniforms(3, 0, 0, range(300), 0, sampler.num_draws)
    masks, size = sampler.of(draws), grid[0] * grid[1]
    wanted = np.floor((share[0] + draws[:, 1] * (share[1] - share[0])) * size)
    assert masks.sum(axis=1).tolist() == np.where(draws[:, 0] < probability, wanted, 0).tolist()
    assert (draws[:, 0] < probability).mean() == pytest.approx(probability, abs=0.1)


def test_a_mask_is_a_function_of_its_own_draws():
    sampler = BlockMasks((7, 7), 0.7)
    draws = uniforms(1, 0, 0, range(40), 0, sampler.num_draws)
    assert (np.concatenate([sampler.of(draws[row:row + 1]) for row in range(40)]) == sampler.of(draws)).all()
    assert (sampler.of(draws.astype(np.float32)) == sampler.of(draws)).all(axis=1).mean() > 0.9


def test_a_uniform_that_fp32_rounds_up_to_one_stays_inside():
    for value in (0.0, 1.0):
        assert BlockMasks((6, 6), 1.1).of(np.full((1, BlockMasks((6, 6)).num_draws), value)).sum() == (3, 18)[int(value)]
