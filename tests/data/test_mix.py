"""Mixup and CutMix: partners inside groups, lambdas of the right law, soft targets as timm's, nothing mixed with what is not there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitscale.data.mix import Mix, apply, in_box, plan_mix
from vitscale.objectives import per_sample_loss
from vitscale.recipe.schema import Augment

BOTH = Augment(mixup=0.8, cutmix=1.0)


def plan(augment, places, group=8, size=None, image=32, epoch=0):
    return plan_mix(augment, 3, epoch, np.asarray(places), group, size or len(places), image, 10)


def batch(size, image=12):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(size, 3, image, image, generator=generator), torch.randint(0, 10, (size,), generator=generator), torch.ones(size))


def test_nothing_is_planned_unless_asked_for():
    assert plan(Augment(), range(8)) is None


def test_partners_are_the_group_reversed_and_the_tail_what_is_there():
    mix = plan(BOTH, [*range(8, 16), *range(32, 37)], size=16)
    assert mix.partner.tolist() == [7, 6, 5, 4, 3, 2, 1, 0, 12, 11, 10, 9, 8, 13, 14, 15]
    assert mix.share[10] == 1               # the middle one of five
    assert mix.share[13:].tolist() == [1, 1, 1]
    assert (mix.share[:8] == mix.share[0]).all()
    assert not mix.box[13:].any()


def test_a_group_is_mixed_the_same_wherever_it_stands():
    whole = plan(BOTH, range(800))
    part = plan(BOTH, [*range(16, 24), *range(480, 488)], size=24)
    for low, at in ((16, 0), (480, 8)):
        assert torch.equal(part.share[at:at + 8], whole.share[low:low + 8])
        assert torch.equal(part.box[at:at + 8], whole.box[low:low + 8])
    assert not torch.equal(plan(BOTH, range(800), epoch=1).share, whole.share)


@pytest.mark.parametrize(("augment", "mixed", "cut"), [
    (Augment(mixup=0.8), 1, 0), (Augment(cutmix=1.0), 1, 1), (BOTH, 1, 0.5), (Augment(mixup=0.8, cutmix=1.0, switch_prob=0.2), 1, 0.2),
    (Augment(mixup=0.4, mix_prob=0.3), 0.3, 0), (Augment(cutmix=1.0, mix_prob=0.3), 0.3, 0.3),
])
def test_rates(augment, mixed, cut):
    mix = plan(augment, range(8 * 4000), image=224)
    share, box = mix.share[::8], mix.box[::8]
    assert (share < 1).float().mean() == pytest.approx(mixed, abs=0.03)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert (area > 0).float().mean() == pytest.approx(cut, abs=0.03)
    torch.testing.assert_close(share[area > 0], (1 - area[area > 0] / 224**2).float())          # lambda is what the box leaves
    assert ((box >= 0) & (box <= 224)).all()


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_lambda_is_beta(alpha):
    share = plan(Augment(mixup=alpha), range(2 * 20000), group=2).share[::2].double()
    assert share.mean() == pytest.approx(0.5, abs=0.01)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_boxes_are_timms():
    """Side sqrt(1 - lambda) of the image around a uniform centre, cut off at the borders (Yun et al. 2019, equation 2)."""
    box = plan(Augment(cutmix=1.0), range(2 * 20000), group=2, image=100).box[::2].double()
    inner = box[(box[:, 0] > 0) & (box[:, 1] > 0) & (box[:, 2] < 100) & (box[:, 3] < 100)]
    assert torch.equal(inner[:, 2] - inner[:, 0], inner[:, 3] - inner[:, 1])
    middle = (box[:, [0, 1]] + box[:, [2, 3]]) / 2
    assert middle.mean(0).tolist() == pytest.approx([50, 50], abs=1)
    assert abs(np.corrcoef(box[:, 0], box[:, 1])[0, 1]) < 0.5


def reference(images, labels, mix):
    """One by one, as the papers have it."""
    out, targets = images.clone(), torch.zeros(len(labels), mix.classes)
    for one, (other, share, box) in enumerate(zip(mix.partner.tolist(), mix.share.tolist(), mix.box.tolist(), strict=True)):
        top, left, bottom, right = box
        if bottom > top and right > left:
            out[one, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
        else:
            out[one] = share * images[one] + (1 - share) * images[other]
        targets[one] = share * F.one_hot(labels[one], mix.classes) + (1 - share) * F.one_hot(labels[other], mix.classes)
    return out, targets


def test_pixels_and_targets_equal_the_reference():
    images, labels, weight = batch(64)
    labels[3] = labels[4]                   # partners of one class
    mix = plan(BOTH, range(64), image=12)
    out, targets = apply(images, labels, weight, mix)
    expected, expected_targets = reference(images, labels, mix)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(targets, expected_targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))


def test_label_smoothing_combines_as_in_timm():
    """timm smooths each label and mixes them; the loss smooths the mixture: the same, since both are linear."""
    images, labels, weight = batch(16)
    mix = plan(BOTH, range(16), image=12)
    _, targets = apply(images, labels, weight, mix)
    logits, smoothing = torch.randn(16, 10), 0.1
    on, off = 1 - smoothing + smoothing / 10, smoothing / 10
    one = torch.full((16, 10), off).scatter_(1, labels[:, None], on)
    other = torch.full((16, 10), off).scatter_(1, labels[mix.partner][:, None], on)
    timms = one * mix.share[:, None] + other * (1 - mix.share[:, None])
    expected = torch.sum(-timms * F.log_softmax(logits, dim=-1), dim=-1)
    torch.testing.assert_close(per_sample_loss(logits, targets, "cross_entropy", smoothing), expected)


def test_what_is_not_there_is_not_mixed_in():
    images, labels, weight = batch(16)
    images[[2, 13]] = float("nan")          # a bad sample and its like
    weight[[2, 13]] = 0
    mix = plan(BOTH, range(16), image=12)
    out, targets = apply(images, labels, weight, mix)
    for one in (5, 10):                     # their partners stay as they were, bit by bit
        assert torch.equal(out[one], images[one])
        assert targets[one].tolist() == F.one_hot(labels[one], 10).tolist()
    assert out[weight > 0].isfinite().all()
    rest = [one for one in range(16) if one not in (2, 5, 10, 13)]
    expected, expected_targets = reference(images, labels, mix)
    torch.testing.assert_close(out[rest], expected[rest])
    torch.testing.assert_close(targets[rest], expected_targets[rest])


def test_share_one_leaves_an_image_as_it_is():
    images, labels, weight = batch(4)
    mix = Mix(torch.tensor([3, 2, 1, 0]), torch.ones(4), torch.zeros(4, 4, dtype=torch.int64), 10)
    out, targets = apply(images, labels, weight, mix)
    assert torch.equal(out, images)
    assert torch.equal(targets, F.one_hot(labels, 10).float())


def test_pixels_of_a_box():
    assert in_box(torch.tensor([[1, 0, 3, 2], [0, 0, 0, 0]]), 3, 3).int().tolist() == [
        [[0, 0, 0], [1, 1, 0], [1, 1, 0]], [[0, 0, 0]] * 3]
