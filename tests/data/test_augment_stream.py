"""Augmented batches: the same pixels and targets on any world, after any resume, with any number of threads; erasing; bad samples."""

import io
import tarfile

import cv2
import numpy as np
import pytest
import torch

from vitscale.data import augment, open_index, open_stream
from vitscale.data.augment import Erase, normal_noise
from vitscale.data.draws import MIX, SHARES, group_uniforms
from vitscale.data.drop_path import keep_of_groups
from vitscale.errors import CheckpointError
from vitscale.recipe.load import check_recipe
from vitscale.train.step import device_inputs

COUNT = 44
RICH = {
    "rand_augment": {"num_ops": 3, "prob": 0.9}, "color_jitter": [0.4, 0.4, 0.4, 0.1], "erasing": {"prob": 0.5}, "mixup": 0.8,
    "cutmix": 1.0,
}
DEIT3 = {"three_augment": True, "color_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.7}


def write(folder, count=COUNT, bad=()):
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number in range(shard, count, 2):
                picture = np.random.Generator(np.random.Philox(number)).integers(0, 256, (6, 7, 3), np.uint8)
                picture = cv2.resize(picture, (20, 18), interpolation=cv2.INTER_CUBIC)
                image = b"garbage" if number in bad else cv2.imencode(".png", picture)[1].tobytes()
                for ext, data in (("cls", b"%d" % (number % 7)), ("png", image)):
                    info = tarfile.TarInfo(f"{number:04d}.{ext}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/s-*.tar"


def recipe(urls, augment, *, repeats=1, workers=2, group=4, batch=16, lanes=8, bad=0.0):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 16, "patch": 4, "classes": 7},
        "data": {"train": urls, "lanes": lanes, "group": group, "workers": workers, "augment": augment, "repeats": repeats,
                 "max_bad_fraction": bad},
        "optim": {"lr": 1e-3}, "global_batch": batch, "duration": "1 epochs", "seed": 5,
    }, "test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shards"))


def collect(recipe, world, steps, micro=4, start=None):
    """{(step, place in the batch): (id, pixels after augmentation, target, weight)} over all ranks, and the state afterwards."""
    seen, state = {}, None
    for rank in range(world):
        with open_stream(recipe, open_index(recipe.data.train), rank=rank, world=world, micro_batch=micro) as stream:
            if start:
                stream.load_state_dict(start)
            for _ in range(steps):
                batch = next(stream)
                for one in batch.micro:
                    given, weight, _ = device_inputs(one, torch.device("cpu"), recipe.data.augment)
                    images, targets = given.images, given.labels
                    assert images.shape == (micro, 3, 16, 16)
                    for slot in np.flatnonzero(one.index.numpy() >= 0).tolist():
                        key = batch.step, int(one.index[slot])
                        assert key not in seen
                        seen[key] = int(one.ids[slot]), images[slot].numpy().tobytes(), targets[slot].tolist(), float(weight[slot])
            state = stream.state_dict()
    return seen, state


@pytest.mark.parametrize("settings", [RICH, DEIT3], ids=["rich", "deit3"])
def test_any_world_micro_batch_and_threads_give_the_same_pixels(shards, settings):
    alone, _ = collect(recipe(shards, settings), 1, 6, 16)
    plain, _ = collect(recipe(shards, {}), 1, 6, 16)
    assert len(alone) == len(plain) == 2 * COUNT
    assert {key: entry[0] for key, entry in alone.items()} == {key: entry[0] for key, entry in plain.items()}
    assert np.mean([alone[key][1] != plain[key][1] for key in plain]) > 0.8
    assert np.mean([max(entry[2]) < 1 for entry in alone.values()]) > 0.3
    for world, micro, workers in ((1, 4, 1), (2, 8, 3), (3, 4, 2), (4, 4, 1)):
        assert collect(recipe(shards, settings, workers=workers), world, 6, micro)[0] == alone


@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_resume_gives_the_same_pixels(shards, stopped):
    whole, _ = collect(recipe(shards, RICH, repeats=2), 1, 7, 8)
    before, state = collect(recipe(shards, RICH, repeats=2), 2, stopped)
    after, _ = collect(recipe(shards, RICH, repeats=2), 3, 7 - stopped, 8, state)
    assert before | after == whole


def test_a_state_from_before_repeats_goes_on_and_another_number_of_them_is_refused(shards):
    with open_stream(recipe(shards, {}), open_index(shards), rank=0, world=1, micro_batch=4) as stream:
        state = stream.state_dict() | {"position": 16}
        stream.load_state_dict({key: value for key, value in state.items() if key not in ("repeats", "set_lanes")})
        assert next(stream).position == 16
        with pytest.raises(CheckpointError, match="repeats was 2, is now 1"):
            stream.load_state_dict(state | {"repeats": 2})


def test_an_epoch_is_as_many_images_as_there_are_samples(shards):
    with open_stream(recipe(shards, {}, repeats=2), open_index(shards), rank=0, world=1, micro_batch=4) as stream:
        assert [(batch.step, batch.end, batch.epoch) for batch in stream.until(90)] == [
            (0, 16, 0), (1, 32, 0), (2, 48, 0), (3, 64, 1), (4, 80, 1), (5, 88, 1), (6, 104, 2)]


def test_mixed_targets_are_those_of_the_pair(shards):
    mixed, _ = collect(recipe(shards, {"mixup": 0.8}), 1, 3)
    plain, _ = collect(recipe(shards, {}), 1, 3)
    for (step, index), (_, _, target, _) in mixed.items():
        low = index // 4 * 4
        size = min(4, 16 if step < 2 else COUNT - 32 - low)
        partner = step, 2 * low + size - 1 - index
        assert sum(target) == pytest.approx(1)
        assert {number for number, share in enumerate(target) if share} <= {plain[step, index][2], plain[partner][2]}


def test_each_copy_has_draws_of_its_own(shards):
    seen, _ = collect(recipe(shards, {"rand_augment": {"prob": 1.0}}, repeats=2), 1, 2, 8)
    for step in range(2):
        for index in range(8):
            one, two = seen[step, index], seen[step, index + 8]
            assert one[0] == two[0]
            assert one[1] != two[1]
            assert one[2] == two[2]
    with open_stream(recipe(shards, {}, repeats=2), open_index(shards), rank=0, world=1, micro_batch=16, drop_rates=[0.5] * 8) as stream:
        keep = next(stream).micro[0].keep
    assert sum(bool((keep[:, index] == keep[:, index + 8]).all()) for index in range(8)) < 2


def test_groups_are_mixed_anew_in_each_step_and_epoch(shards):
    with open_stream(recipe(shards, {"mixup": 0.8}), open_index(shards), rank=0, world=1, micro_batch=16) as stream:
        shares = torch.cat([next(stream).micro[0].mix.share[::4] for _ in range(6)])
    assert len(shares[shares < 1].unique()) == (shares < 1).sum() > 15


def test_a_group_that_cannot_be_read_is_not_mixed_into_others(tmp_path, shards):
    plain, _ = collect(recipe(shards, {}, lanes=16), 1, 3)
    group = [plain[0, index][0] for index in range(4, 8)]
    lost = {number // 22 + number % 22 * 2 for number in group}          # ids run through the shards one after the other
    urls = write(tmp_path, bad=lost)
    whole, _ = collect(recipe(shards, RICH, lanes=16), 1, 3)
    seen, _ = collect(recipe(urls, RICH, lanes=16, bad=1.0), 1, 3)
    for key in whole:
        if key[0] == 0 and 4 <= key[1] < 8:
            assert seen[key][3] == 0
        else:
            assert seen[key] == whole[key]


def test_evaluation_is_not_augmented(shards):
    with open_stream(recipe(shards, RICH), open_index(shards), "val", rank=0, world=1, micro_batch=4) as stream:
        one = next(iter(stream))
    assert (one.views[0].ops, one.views[0].erase, one.mix) == (None, None, None)
    assert device_inputs(one, torch.device("cpu"), recipe(shards, RICH).data.augment)[0].labels.dtype == torch.int64


def test_erased_rectangles_hold_noise_or_the_mean():
    images = torch.randint(0, 256, (3, 20, 20, 3), dtype=torch.uint8)
    boxes, keys = torch.tensor([[2, 3, 12, 18], [0, 0, 20, 5]]), torch.tensor([99, 100])
    before = augment.apply(images, None, (0.5,) * 3, (0.25,) * 3)
    for noise in (True, False):
        after = augment.apply(images, None, (0.5,) * 3, (0.25,) * 3, erase=Erase(torch.tensor([2, 0]), boxes, keys, noise))
        assert torch.equal(after[1], before[1])
        for row, (top, left, bottom, right), filling in zip((2, 0), boxes.tolist(), normal_noise(keys, 3, 20, 20), strict=True):
            inside = torch.zeros(20, 20, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert torch.equal(after[row][:, ~inside], before[row][:, ~inside])
            assert torch.equal(after[row][:, inside], filling[:, inside] if noise else torch.zeros(3, int(inside.sum())))


def test_noise_is_normal_and_hangs_on_its_key_alone():
    keys = torch.tensor([1, 2, 2**53 - 1])
    noise = normal_noise(keys, 3, 100, 100)
    assert torch.equal(normal_noise(keys[1:2], 3, 100, 100)[0], noise[1])
    assert noise.mean(dim=(2, 3)).abs().max() < 0.03
    assert (noise.std(dim=(2, 3)) - 1).abs().max() < 0.03
    assert np.abs(np.corrcoef(noise.flatten(2).flatten(0, 1).numpy()) - np.eye(9)).max() < 0.05
    flat = noise.flatten()
    assert ((flat[1:] * flat[:-1]).mean()).abs() < 0.02
    assert [(flat.abs() < bound).float().mean().item() for bound in (1, 2)] == pytest.approx([0.6827, 0.9545], abs=0.005)


def test_what_comes_from_outside_is_the_mean_colour():
    images = torch.zeros((1, 8, 8, 3), dtype=torch.uint8)
    half = torch.tensor([[1.0, 0, 4, 0, 1, 0]], dtype=torch.float64)        # four pixels to the left
    out = augment.apply(images, None, (0.2, 0.4, 0.6), (1.0,) * 3, ops=augment.Ops((("affine", 0, 1),), torch.tensor([0]), half))
    assert out[0, :, :, 4:].abs().max() < 0.5 / 255 + 1e-6
    assert torch.equal(out[0, :, :, :4], augment.apply(images, None, (0.2, 0.4, 0.6), (1.0,) * 3)[0, :, :, :4])


def test_the_input_is_left_alone():
    images = torch.randint(0, 256, (4, 6, 6, 1), dtype=torch.uint8)
    before = images.clone()
    ops = augment.Ops((("invert", 0, 4),), torch.arange(4), torch.zeros(4, 6, dtype=torch.float64))
    out = augment.apply(images, None, (0.0,) * 3, (1.0,) * 3, ops=ops)
    assert torch.equal(images, before)
    assert torch.equal(out, (255 - before).permute(0, 3, 1, 2) / 255)


def kept(urls, world, micro, steps, workers=2):
    """{(step, place in the batch): its column of keep} over all ranks; how many stay of every group of slots, dummies among them."""
    given = recipe(urls, {}, workers=workers)
    given = given.model_copy(update={"model": given.model.model_copy(update={"drop_path": 0.5, "drop_path_group": 2})})
    rates, found, groups = (0.0, 0.25, 0.5, 0.5), {}, []
    for rank in range(world):
        with open_stream(given, open_index(urls), rank=rank, world=world, micro_batch=micro, drop_rates=rates) as stream:
            for _ in range(steps):
                batch = next(stream)
                for one in batch.micro:
                    groups.append(one.keep.unflatten(1, (-1, 2)).sum(dim=2))
                    found |= {(batch.step, int(one.index[slot])): tuple(one.keep[:, slot].tolist())
                              for slot in np.flatnonzero(one.index.numpy() >= 0).tolist()}
    return found, torch.cat(groups, dim=1)


def test_a_share_of_each_group_keeps_its_branches_on_any_world(shards):
    alone, groups = kept(shards, 1, 16, 30)
    assert len(alone) == 10 * COUNT
    assert (groups == torch.tensor([2.0, 2.0, 1.0, 1.0])[:, None]).all()        # a quarter of 2 is none
    for world, micro, workers in ((1, 4, 1), (2, 8, 3), (3, 4, 2)):
        again, groups = kept(shards, world, micro, 30, workers)
        assert again == alone
        assert (groups == torch.tensor([2.0, 2.0, 1.0, 1.0])[:, None]).all()
    rows = np.array([alone[key] for key in sorted(alone)])
    assert rows[:, 2].mean() == rows[:, 3].mean() == 0.5
    assert 0.3 < np.mean(rows[:, 2] == rows[:, 3]) < 0.7                        # each branch has a draw of its own
    assert 0.3 < np.mean(rows[:8 * COUNT, 2] == rows[COUNT:9 * COUNT, 2]) < 0.7       # and each epoch


def test_a_sample_whose_group_is_not_full_stays_no_more_often():
    """Else the scale of what stays would be wrong for it."""
    alone = [keep_of_groups([0.5], 7, epoch, np.array([40]), 4, 8)[0] for epoch in range(400)]
    assert {tuple(row[4:]) for row in alone} == {(1, 1, 0, 0)}                   # a group of dummies alone
    assert {row[:4].sum() for row in alone} == {2}
    assert np.mean([row[0] for row in alone]) == pytest.approx(0.5, abs=0.08)


def test_who_stays_has_nothing_to_do_with_what_is_mixed():
    found = keep_of_groups([0.5] * 6, 7, 3, np.arange(16), 4, 16)
    draws = group_uniforms(7, 3, range(4), SHARES + 24)
    assert MIX.stop <= SHARES
    assert (found == (draws[:, SHARES:].reshape(4, 6, 4).argsort(axis=2).argsort(axis=2) < 2).transpose(1, 0, 2).reshape(6, 16)).all()
