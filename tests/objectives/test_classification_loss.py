"""Losses against torch's own, closed forms, and who counts as correct."""

import math

import pytest
import torch
import torch.nn.functional as F

from vitscale.objectives import Seen, build_task, multilabel_hits, per_sample_loss, topk_correct
from vitscale.recipe import Classification, Vit
from vitscale.recipe.objectives import Distillation


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits (5, 7), hard labels (5,), soft labels (5, 7)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator) * 3
    return logits, torch.tensor([0, 6, 3, 3, 1]), torch.rand(5, 7, generator=generator).softmax(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_minus_the_targets_log_probability(smoothing):
    logits, labels, soft = batch()
    log_probability = logits.log_softmax(-1)
    hard = torch.zeros(5, 7).scatter_(1, labels[:, None], 1.0)
    for given, target in ((labels, hard), (soft, soft)):
        expected = -(((1 - smoothing) * target + smoothing / 7) * log_probability).sum(-1)
        torch.testing.assert_close(per_sample_loss(logits, given, "cross_entropy", smoothing), expected)
    torch.testing.assert_close(
        per_sample_loss(logits, labels, "cross_entropy", smoothing).mean(), F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_the_mean_over_classes(smoothing):
    logits, labels, soft = batch()
    for given, target in ((labels, F.one_hot(labels, 7).float()), (soft, soft)):
        target = (1 - smoothing) * target + smoothing / 7
        probability = logits.sigmoid()
        expected = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean(-1)
        torch.testing.assert_close(per_sample_loss(logits, given, "binary_cross_entropy", smoothing), expected)
    whole = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(per_sample_loss(logits, soft, "binary_cross_entropy").mean(), whole)


def test_a_guess_costs_what_it_must():
    logits, labels, _ = batch()
    assert per_sample_loss(torch.zeros_like(logits), labels).tolist() == pytest.approx([math.log(7)] * 5)
    assert per_sample_loss(torch.zeros_like(logits), labels, "binary_cross_entropy").tolist() == pytest.approx([math.log(2)] * 5)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_losses_of_bf16_logits_are_computed_in_fp32(loss):
    logits, labels, soft = batch()
    rounded = logits.bfloat16()
    for given in (labels, soft):
        losses = per_sample_loss(rounded, given, loss)
        assert losses.dtype == torch.float32
        assert losses.shape == (5,)
        assert torch.equal(losses, per_sample_loss(rounded.float(), given, loss))


def losses_by(section, classes=7):
    logits, labels, _ = batch()
    return build_task(Vit(size="tiny", classes=classes), section).losses(logits, Seen(torch.zeros(()), labels))


def test_the_section_chooses_the_loss():
    logits, labels, _ = batch()
    section = Classification(loss="binary_cross_entropy", label_smoothing=0.2)
    assert torch.equal(losses_by(section), per_sample_loss(logits, labels, "binary_cross_entropy", 0.2))
    assert torch.equal(losses_by(Classification()), per_sample_loss(logits, labels))
    with pytest.raises(ValueError, match="wants logits of 8 classes, got 7"):
        losses_by(Classification(), classes=8)


@pytest.mark.parametrize("section", [
    Classification(), Classification(label_smoothing=0.3), Classification(loss="binary_cross_entropy"),
    Classification(loss="binary_cross_entropy", label_smoothing=0.1),
    Distillation(name="distillation", teacher="t", label_smoothing=0.2),
    Distillation(name="distillation", teacher="t", kind="soft", alpha=1.0),
], ids=str)
def test_an_evaluation_reports_the_same_loss_whatever_was_trained_with(section):
    logits, labels, soft = batch()
    task = build_task(Vit(size="tiny", classes=7), section)
    plain = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(task.evaluation_losses(logits, Seen(torch.zeros(()), labels)), plain)
    several = (soft > 0.2).float()
    assert torch.equal(task.evaluation_losses(logits, Seen(torch.zeros(()), several)),
                       F.binary_cross_entropy_with_logits(logits, several, reduction="none").mean(1))


def test_shapes_that_do_not_belong_together_are_refused():
    logits, labels, soft = batch()
    for wrong in (labels[:4], soft[:, :6], labels[:, None]):
        with pytest.raises(ValueError, match="wants logits"):
            per_sample_loss(logits, wrong)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk_agrees_with_sorting(k):
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(200, 9, generator=generator), torch.randint(9, (200,), generator=generator)
    expected = (logits.topk(k).indices == labels[:, None]).any(-1)
    assert torch.equal(topk_correct(logits, labels, k), expected)
    assert 0 < expected.float().mean() < 1


def test_equal_logits_go_to_the_lower_class():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]]).repeat(4, 1)
    labels = torch.arange(4)
    assert topk_correct(logits, labels, 1).tolist() == [False, True, False, False]
    assert topk_correct(logits, labels, 2).tolist() == [False, True, True, False]
    assert topk_correct(torch.zeros(4, 4), labels, 1).tolist() == [True, False, False, False]      # a constant is no classifier


def test_nan_is_never_right_and_k_may_exceed_the_classes():
    logits = torch.tensor([[1.0, float("nan"), 0.0]])
    for label in range(3):
        assert topk_correct(logits, torch.tensor([label]), 1).tolist() == [False]
        assert topk_correct(logits, torch.tensor([label]), 3).tolist() == [True]
    assert topk_correct(logits, torch.tensor([0]), 2).tolist() == [True]
    assert topk_correct(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), 5).tolist() == [True]


@pytest.mark.parametrize("k", [1, 2, 5, 9, 20])
def test_a_hit_is_any_label_among_the_largest(k):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randint(6, (300, 9), generator=generator).float()           # ties
    logits[torch.rand(300, 9, generator=generator) < 0.1] = float("nan")
    targets = (torch.rand(300, 9, generator=generator) < 0.2).float()
    by_label = torch.stack([topk_correct(logits, torch.full((300,), label), k) for label in range(9)], 1)
    hits = multilabel_hits(logits, targets, k)
    assert torch.equal(hits, (by_label & (targets > 0)).any(1))
    assert not hits[targets.sum(1) == 0].any()


def test_with_one_label_each_hits_are_correct_answers():
    logits, labels, _ = batch()
    one_hot = F.one_hot(labels, 7).float()
    for k in (1, 3, 7):
        assert torch.equal(multilabel_hits(logits, one_hot, k), topk_correct(logits, labels, k))
    assert multilabel_hits(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]]), 1).tolist() == [False]
    assert multilabel_hits(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]]), 2).tolist() == [True]
