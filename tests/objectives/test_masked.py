"""Which patches are hidden, and what is asked of them."""

from pathlib import Path

import pytest
import torch

from vitscale.data import open_index, open_stream
from vitscale.objectives import Seen, build_task
from vitscale.objectives.masked import patches_of
from vitscale.recipe import Vit
from vitscale.recipe.load import check_recipe
from vitscale.recipe.objectives import Inpainting, Mae

MODEL = Vit(width=16, depth=1, heads=2, mlp=24, patch=2, image=8, channels=1)
LABELS = torch.zeros(3, dtype=torch.int64)


def seen_with(task, seed=1) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    return Seen(torch.randn(3, 1, 8, 8, generator=generator), LABELS, torch.rand(3, task.num_draws, generator=generator))


def test_patches_lie_row_by_row_and_so_do_their_pixels_with_channels_last():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patches_of(images, 2)
    assert patches.shape == (2, 6, 12)
    for patch in range(6):
        top, left = 2 * (patch // 3), 2 * (patch % 3)
        expected = [images[1, c, top + y, left + x].item() for y in range(2) for x in range(2) for c in range(3)]
        assert patches[1, patch].tolist() == expected


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.5, 8), (0.7, 12), (0.9, 15)])
def test_mae_s_loss_is_that_of_the_hidden_patches(ratio, hidden):
    """What is told of a visible patch costs nothing, and the number of hidden ones is the paper's: 16 - floor(16 (1 - ratio))."""
    task = build_task(MODEL, Mae(name="mae", mask_ratio=ratio))
    seen = seen_with(task)
    order = task.inputs(seen)[1]
    assert [sorted(row) for row in order.tolist()] == [list(range(16))] * 3
    assert order.tolist() == seen.draws.argsort(dim=1).tolist()
    output, target = torch.zeros(3, 16, 4), patches_of(seen.images, 2)
    output.scatter_(1, order[:, :16 - hidden, None].expand(-1, -1, 4), 1e6)
    expected = [target[image, order[image, 16 - hidden:]].square().mean().item() for image in range(3)]
    assert task.losses(output, seen).tolist() == pytest.approx(expected)
    assert task.losses(target, seen).tolist() == [0.0] * 3
    assert task.numbers.evaluation == ()


def test_normalised_pixels():
    task = build_task(MODEL, Mae(name="mae", norm_pix=True))
    seen = seen_with(task)
    brighter = Seen(seen.images * 3 + 2, LABELS, seen.draws)         # a patch's own mean and contrast are not asked for
    output = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(2))
    assert task.losses(output, brighter).tolist() == pytest.approx(task.losses(output, seen).tolist(), rel=1e-4)
    flat = Seen(torch.full((3, 1, 8, 8), 0.3), LABELS, seen.draws)
    assert task.losses(torch.zeros(3, 16, 4), flat).abs().max() < 1e-6


def test_equal_uniforms_are_taken_in_the_order_of_patches():
    task = build_task(MODEL, Mae(name="mae"))
    seen = Seen(torch.zeros(3, 1, 8, 8), LABELS, torch.zeros(3, 16))
    assert task.inputs(seen)[1].tolist() == [list(range(16))] * 3
    task = build_task(MODEL, Inpainting(name="inpainting", mask_patch=4))
    assert task.inputs(Seen(seen.images, LABELS, torch.zeros(3, 4)))[1][0].sum() == 3 * 4


@pytest.mark.parametrize(("side", "ratio", "squares"), [(4, 0.6, 3), (4, 0.5, 2), (2, 0.6, 10), (2, 0.1, 2)])
def test_inpainting_masks_whole_squares(side, ratio, squares):
    task = build_task(MODEL, Inpainting(name="inpainting", mask_patch=side, mask_ratio=ratio))
    seen = seen_with(task)
    images, mask = task.inputs(seen)
    assert images is seen.images
    across = 8 // side
    grid = mask.reshape(3, across, side // 2, across, side // 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert (grid.all(dim=3) == grid.any(dim=3)).all()
    assert grid.all(dim=3).sum(dim=(1, 2)).tolist() == [squares] * 3
    hidden = grid.all(dim=3).flatten(1)
    assert all(seen.draws[image][hidden[image]].max() < seen.draws[image][~hidden[image]].min() for image in range(3))
    target = patches_of(seen.images, 2)
    output = torch.where(mask[:, :, None], target + 0.5, 1e6)
    assert task.losses(output, seen).tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(("world", "label"), [(2, None), (3, "absent")])
def test_an_image_s_mask_is_the_same_on_any_number_of_ranks(digits: Path, world: int, label: str | None) -> None:
    """And labels are not read: a member that no sample has is as good as none."""
    recipe = check_recipe({
        "name": "masks", "model": MODEL.model_dump(), "data": {"train": f"{digits}/train-*.tar", "label": label, "workers": 1},
        "objective": {"name": "mae"}, "optim": {"lr": 1e-3}, "global_batch": 12, "duration": "2 steps"}, "here")
    task = build_task(recipe.model, recipe.objective)
    index = open_index(recipe.data.train)

    def orders(size: int) -> dict[tuple[int, int], list[int]]:
        found = {}
        for rank in range(size):
            with open_stream(recipe, index, "train", rank=rank, world=size, micro_batch=4, num_draws=task.num_draws) as stream:
                for step in range(2):
                    for micro in next(stream).micro:
                        order = task.inputs(Seen(micro.images, micro.labels, micro.draws))[1]
                        assert not micro.labels.any()
                        pairs = zip(micro.ids.tolist(), order.tolist(), strict=True)
                        found |= {(step, sample): row for sample, row in pairs if sample >= 0}
        return found

    alone = orders(1)
    assert len(alone) == 24
    assert len({tuple(row) for row in alone.values()}) == 24
    assert orders(world) == alone
