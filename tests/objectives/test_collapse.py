"""Numbers that tell whether features still tell images apart."""

import math

import numpy as np
import pytest
import torch

from vitscale.objectives.collapse import divergence, entropy, information, rankme


def test_entropy_and_divergence():
    uniform, sharp = torch.full((2, 8), 1 / 8), torch.eye(8)[:2]
    assert entropy(uniform).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(sharp).tolist() == [0.0, 0.0]
    logits, teacher = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.rand(5, 8).softmax(dim=1)
    p, q = teacher.double().numpy(), (logits.double() / 0.1).softmax(dim=1).numpy()
    assert divergence(logits, teacher, 0.1).tolist() == pytest.approx((p * np.log(p / q)).sum(axis=1).tolist(), rel=1e-4)
    assert divergence(logits, (logits / 0.1).softmax(dim=1), 0.1).abs().max() < 1e-5


def test_information_is_nothing_in_both_of_dino_s_collapses_and_all_where_each_image_has_a_prototype():
    def of(answers):
        return information(answers.mean(dim=0), entropy(answers).mean()).item()

    one_for_all, all_alike = torch.eye(8)[:1].expand(16, -1), torch.full((16, 8), 1 / 8)
    assert of(one_for_all) == pytest.approx(0, abs=1e-6)
    assert of(all_alike) == pytest.approx(0, abs=1e-6)
    assert of(torch.eye(8)) == pytest.approx(1)
    assert of(torch.eye(8)[[0, 1] * 4]) == pytest.approx(1 / 3)          # two prototypes of eight: log 2 / log 8


def test_rankme_is_that_of_the_paper_and_comes_from_sums():
    z = torch.randn(300, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z *= torch.logspace(0, -3, 12, dtype=torch.float64)
    values = np.linalg.svd(z.numpy(), compute_uv=False)
    p = values / np.abs(values).sum() + 1e-7
    expected = math.exp(-(p * np.log(p)).sum())
    for split in ((300,), (100, 200), (7, 0, 293)):
        assert rankme(sum(part.T @ part for part in z.split(split))).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_counts_directions(rank):
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(rank), dtype=torch.float64))[0][:, :rank]
    assert rankme(basis @ basis.T * 50).item() == pytest.approx(rank, rel=1e-4)


def test_rankme_of_nothing_is_nothing():
    assert rankme(torch.zeros(4, 4)).item() == 0
