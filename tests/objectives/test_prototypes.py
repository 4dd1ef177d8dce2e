"""DINO's, iBOT's and DINOv2's losses against float64 written from the papers, and equal for any split of the rows over ranks."""

import itertools
import threading

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from vitscale.objectives.prototypes import centred, cross_entropy, moved_centre, patch_losses, sinkhorn, view_losses


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosines(rows, prototypes, seed=0):
    """Logits as a head gives them."""
    features, directions = numbers(rows, 8, seed=seed), numbers(prototypes, 8, seed=seed + 100)
    return torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(directions, dim=1).T


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def on_parts(parts, function):
    """function(part, total) of each part side by side, as ranks would; total adds up in the order of parts."""
    barrier, asked, found = threading.Barrier(len(parts), timeout=60), [None] * len(parts), [None] * len(parts)

    def run(number):
        def total(sums):
            assert sums.dtype == torch.float64
            asked[number] = sums
            barrier.wait()
            whole = torch.stack(asked).sum(dim=0)
            barrier.wait()
            return whole

        found[number] = function(parts[number], total)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


SPLITS = [(10,), (5, 5), (1, 9), (3, 0, 7), (2, 3, 1, 4)]


def sinkhorn_of_the_paper(logits, temperature, iterations):
    """SwAV's listing (Caron et al. 2020, appendix A), DINOv2's order."""
    q = np.exp(logits.double().numpy() / temperature).T
    q /= q.sum()
    prototypes, samples = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= prototypes
        q /= q.sum(axis=0, keepdims=True)
        q /= samples
    return (q * samples).T


@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_that_of_the_paper(temperature, iterations):
    logits = cosines(10, 6)
    found = sinkhorn(logits, torch.ones(10), temperature, lambda sums: sums, iterations)
    assert found.numpy() == pytest.approx(sinkhorn_of_the_paper(logits, temperature, iterations), rel=2e-5, abs=1e-7)


def test_sinkhorn_s_marginals():
    """Rows sum to 1 after any number of iterations, columns to n / K in the limit, which no plain softmax does."""
    logits, ones = cosines(40, 5), torch.ones(40)
    for iterations in (1, 3, 200):
        assert sinkhorn(logits, ones, 0.1, lambda sums: sums, iterations).sum(dim=1).tolist() == pytest.approx([1.0] * 40, abs=1e-5)
    spread = [(sinkhorn(logits, ones, 0.1, lambda sums: sums, n).sum(dim=0) - 8).abs().max().item() for n in (1, 3, 200)]
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 1e-3 < (logits / 0.1).softmax(dim=1).sum(dim=0).sub(8).abs().max().item()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("invalid", [(), (0, 7)])
def test_a_teacher_s_answers_are_those_of_one_process_however_rows_are_split(split, invalid):
    logits, valid = cosines(10, 6, seed=3), torch.ones(10)
    valid[list(invalid)] = 0
    logits[list(invalid)] = torch.nan                        # whatever a dummy holds, nobody notices
    centre, good = numbers(6, seed=5), valid.bool()
    parts = list(zip(logits.split(split), valid.split(split), strict=True))
    answers = torch.cat(on_parts(parts, lambda part, total: sinkhorn(*part, 0.04, total)))
    expected = sinkhorn_of_the_paper(logits[good], 0.04, 3)
    assert answers[good].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    centres = on_parts(parts, lambda part, total: moved_centre(centre, *part, 0.9, total))
    expected = 0.9 * centre.double() + 0.1 * logits[good].double().mean(dim=0)
    assert all(one.tolist() == pytest.approx(expected.tolist(), rel=1e-6) for one in centres)
    assert all(torch.equal(one, centres[0]) for one in centres)


def test_a_step_without_a_readable_image_moves_no_centre_and_gives_no_nan():
    logits, centre, none = cosines(4, 6), numbers(6), torch.zeros(4)
    assert torch.equal(moved_centre(centre, logits, none, 0.9, lambda sums: sums), centre)
    assert torch.isfinite(sinkhorn(logits, none, 0.04, lambda sums: sums) * none[:, None]).all()


def test_the_teacher_s_softmax_is_centred_and_sharp():
    logits, centre = numbers(5, 7), numbers(7, seed=1)
    assert centred(logits, centre, 0.04).numpy() == pytest.approx(
        softmax((logits.double().numpy() - centre.double().numpy()) / 0.04), rel=1e-4, abs=1e-7)
    assert centred(logits.bfloat16(), centre, 0.04).dtype == torch.float32


@pytest.mark.parametrize(("teachers", "views"), [(2, 2), (2, 5), (1, 3), (3, 3)])
def test_dino_s_loss_is_that_of_the_paper(teachers, views):
    """Algorithm 1: for every teacher's view and every other view of the student's -(p log q), mean over pairs, image by image."""
    student = [numbers(4, 6, seed=view) for view in range(views)]
    teacher = [numbers(4, 6, seed=20 + view).softmax(dim=1) for view in range(teachers)]
    expected, pairs = np.zeros(4), 0
    for t, s in itertools.product(range(teachers), range(views)):
        if t != s:
            expected -= (teacher[t].double().numpy() * np.log(softmax(student[s].double().numpy() / 0.1))).sum(axis=1)
            pairs += 1
    assert view_losses(student, teacher, 0.1).tolist() == pytest.approx((expected / pairs).tolist(), rel=1e-5)


def test_ibot_s_loss_is_the_mean_over_an_image_s_masked_patches():
    counts = [3, 0, 1, 2]
    image = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    student, teacher = numbers(6, 5), numbers(6, 5, seed=1).softmax(dim=1)
    each = -(teacher.double().numpy() * np.log(softmax(student.double().numpy() / 0.1))).sum(axis=1)
    expected = [each[:3].mean(), 0.0, each[3], each[4:].mean()]
    assert patch_losses(student, teacher, image, 4, 0.1).tolist() == pytest.approx(expected, rel=1e-5)
    assert patch_losses(student[:0], teacher[:0], image[:0], 4, 0.1).tolist() == [0.0] * 4


def test_gradients():
    student, teacher = numbers(2, 3, 4, dtype=torch.float64).requires_grad_(), numbers(2, 3, 4, seed=9, dtype=torch.float64).softmax(dim=-1)
    assert gradcheck(lambda x: cross_entropy(x, teacher, 0.1), student)
    assert gradcheck(lambda x: view_losses([*x, x[0] * 0.5], list(teacher), 0.1), student)
    assert gradcheck(lambda x: patch_losses(x[0], teacher[0], torch.tensor([0, 2, 2]), 3, 0.1), student)
