"""Where rotary positions lie while training: by the published code's formula, drawn by key, and where they always did in evaluation."""

import math

import numpy as np
import pytest
import torch

from vitscale.data import MicroBatch, StepBatch
from vitscale.data.batch import ViewBatch
from vitscale.data.draws import step_uniforms
from vitscale.models import initialise
from vitscale.models.position import jittered, rotary
from vitscale.models.vit import VisionTransformer, build
from vitscale.recipe.check_model import model_contradictions
from vitscale.recipe.schema import Vit
from vitscale.train.coupling import jitter_positions

SECTION = {"width": 16, "depth": 3, "heads": 2, "mlp": 24, "patch": 4, "image": 16, "classes": 0, "position": "rotary", "drop_path": 0.0}


def model(**keys: object) -> VisionTransformer:
    net = build(Vit(**SECTION, **keys))
    initialise(net, 0)
    return net


def step(position: int, seed: int = 3) -> StepBatch:
    """Of views of 16 and of 8 pixels."""
    views = tuple(ViewBatch(torch.zeros(2, side, side, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.bool)) for side in (16, 8))
    nothing = torch.zeros(2)
    return StepBatch(0, position, position + 2, 0, 2, [MicroBatch(views, nothing, nothing, nothing, nothing, None)], seed)


@pytest.mark.parametrize("kinds", [(0.3, None, None), (None, 1.5, None), (None, None, 2.0), (0.3, 1.5, 2.0)])
def test_places_are_those_of_the_published_code(kinds):
    """Siméoni et al. 2025: coords += U(-shift, shift) by axis; *= exp U(-log jitter, log jitter) by axis; *= that of rescale."""
    shift, jitter, rescale = kinds
    draws = torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = rotary((3, 2), 8, boxes=jittered(draws, *kinds))
    for block, (up, across, tall, wide, both) in enumerate(2 * draws.numpy() - 1):
        coords = np.stack(np.meshgrid((np.arange(3) + 0.5) / 3, (np.arange(2) + 0.5) / 2, indexing="ij"), -1).reshape(-1, 2) * 2 - 1
        if shift:
            coords = coords + np.array([up, across]) * shift
        if jitter:
            coords = coords * np.exp(np.array([tall, wide]) * math.log(jitter))
        if rescale:
            coords = coords * math.exp(both * math.log(rescale))
        periods = 100.0 ** (2 * np.arange(2) / 4)
        angles = np.tile((2 * math.pi * coords[:, :, None] / periods).reshape(6, 4), 2)
        np.testing.assert_allclose(found[block], angles, rtol=1e-5, atol=1e-5)


def test_how_far_places_go_is_drawn_evenly_between_the_bounds():
    moved, stretched = jittered(torch.from_numpy(step_uniforms(0, 0, range(4000), 5)), 0.25, 1.5, 2.0).double().unbind(1)
    assert moved.abs().max() <= 0.25
    assert moved.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    assert stretched.log().abs().max() <= math.log(3.0) + 1e-6
    wanted = math.sqrt((math.log(1.5) ** 2 + math.log(2.0) ** 2) / 3)
    assert stretched.log().std() == pytest.approx(wanted, rel=0.05)
    assert abs(float(moved.mean())) < 0.01


def test_a_step_draws_for_every_size_and_block_and_by_its_place_alone():
    net = model(rope_rescale=2.0, rope_shift=0.2)
    jitter_positions(net, step(40))
    first = dict(net.boxes)
    assert {grid: box.shape for grid, box in first.items()} == {(4, 4): (3, 2, 2), (2, 2): (3, 2, 2)}
    everything = torch.cat([box[:, 1, 0] for box in first.values()])
    assert len(everything.unique()) == 6, "each size and block has its own"
    jitter_positions(net, step(42))
    assert not torch.equal(net.boxes[4, 4], first[4, 4])
    jitter_positions(net, step(40, seed=4))
    assert not torch.equal(net.boxes[4, 4], first[4, 4])
    jitter_positions(net, step(40))
    assert all(torch.equal(net.boxes[grid], box) for grid, box in first.items())


def test_training_sees_moved_places_and_evaluation_does_not():
    net, plain = model(rope_rescale=2.0), model()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    jitter_positions(net, step(40))
    assert not torch.allclose(net.train()(images), plain.train()(images))
    assert torch.equal(net.eval()(images), plain.eval()(images))
    assert torch.equal(net.train()(images), net(images)), "within a step nothing is drawn anew"
    jitter_positions(plain, step(40))
    assert not plain.boxes


def test_it_belongs_to_places_that_lie_in_a_box():
    for keys in ({"position": "learned"}, {"position": "rotary", "rope_type": "axial"},
                 {"position": "none", "rope_type": "mixed"}):
        section = Vit(**{**SECTION, **keys}, rope_rescale=2.0)
        assert [key for key, _ in model_contradictions(section)] == ["model.rope_rescale"]
    assert not model_contradictions(Vit(**SECTION, rope_jitter=1.2))
