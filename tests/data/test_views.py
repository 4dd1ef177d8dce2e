"""Sets of views: cut from one decoding, by draws of their own, the same on any number of ranks, threads and micro-batches."""

import io
import tarfile

import cv2
import numpy as np
import pytest

from vitscale.data import native, open_index, open_stream
from vitscale.data.crop import RandomCrop
from vitscale.data.decode import Cut, decode, decode_views
from vitscale.data.draws import COLOURS, CROP, FLIP, KEEP, uniforms
from vitscale.data.policy import chances, operations, wants_colours
from vitscale.recipe import Augment, Recipe
from vitscale.recipe.load import check_recipe

COUNT, BAD = 30, 11
COLOURED = {"color_jitter": [0.4, 0.4, 0.2, 0.1], "color_jitter_prob": 0.8, "grey": 0.2, "blur": 0.5, "solarize": 0.3}
VIEWS = [{"name": "a", "count": 2, "augment": {"scale": [0.4, 1], **COLOURED}}, {"name": "b", "count": 3, "image": 8}]


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    with tarfile.open(folder / "s-0.tar", "w") as tar:
        for number in range(COUNT):
            picture = np.random.Generator(np.random.Philox(number)).integers(0, 256, (6, 7, 3), np.uint8)
            picture = cv2.resize(picture, (40, 36), interpolation=cv2.INTER_CUBIC)
            data = b"garbage" if number == BAD else cv2.imencode((".png", ".jpg")[number % 2], picture)[1].tobytes()
            info = tarfile.TarInfo(f"{number:04d}.{('png', 'jpg')[number % 2]}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"{folder}/s-*.tar"


def recipe(urls, views=VIEWS, **model) -> Recipe:
    return check_recipe({
        "name": "t", "model": {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "image": 16, "patch": 4, "classes": 0, **model},
        "data": {"train": urls, "label": None, "workers": 2, "max_bad_fraction": 1.0, "views": views},
        "objective": {"name": "dino"}, "optim": {"lr": 1e-3}, "global_batch": 10, "duration": "1 epochs", "seed": 5}, "test")


def collect(section, world, micro, steps=3, rates=(0.0, 0.5, 0.5, 0.5)):
    """{(step, place): (id, weight, pixels and flips of its views, operations on them, its columns of keep)} over all ranks."""
    found = {}
    for rank in range(world):
        with open_stream(section, open_index(section.data.train), rank=rank, world=world, micro_batch=micro, drop_rates=rates) as stream:
            for _ in range(steps):
                batch = next(stream)
                for one in batch.micro:
                    for slot in np.flatnonzero(one.ids.numpy() >= 0):
                        views, column, keep = [], 0, []
                        for view in one.views:
                            for row in range(int(slot), len(view.images), len(one.ids)):
                                ops = [] if view.ops is None else [
                                    (name, *view.ops.parameters[at].tolist()) for name, low, high in view.ops.parts
                                    for at in range(low, high) if view.ops.rows[at] == row]
                                views.append((view.images[row].numpy().tobytes(), bool(view.flip[row]), ops))
                                keep.append(one.keep[:, column + row].tolist())
                            column += len(view.images)
                        found[batch.step, int(one.index[slot])] = (int(one.ids[slot]), float(one.weight[slot]), views, keep)
    return found


def test_every_view_is_the_same_on_any_number_of_ranks_and_in_any_micro_batch(urls):
    section = recipe(urls)
    whole = collect(section, 1, 10)
    assert len(whole) == COUNT
    for world, micro in ((1, 3), (2, 5), (3, 2), (4, 1)):
        assert collect(section, world, micro) == whole
    for number, weight, views, keep in whole.values():
        assert len(views) == 5
        if number == BAD:
            assert weight == 0
            assert all(not any(pixels) for pixels, _, _ in views)
        else:
            assert len({pixels for pixels, _, _ in views}) == 5
        assert all(column[0] == 1 for column in keep)       # a rate of 0
    assert len({str(keep[0]) for _, _, _, keep in whole.values()} | {str(keep[1]) for _, _, _, keep in whole.values()}) > 4


def test_the_first_view_draws_what_a_recipe_without_views_draws(urls):
    plain = recipe(urls).model_copy(update={"data": recipe(urls).data.model_copy(update={"views": ()})})
    one = recipe(urls, [{"name": "a"}, {"name": "b", "image": 8}])
    with_views, without = collect(one, 1, 5), collect(plain, 1, 5)
    assert {place: (row[0], row[1], row[2][0], row[3][0]) for place, row in with_views.items()} == {
        place: (row[0], row[1], row[2][0], row[3][0]) for place, row in without.items()}


def test_an_image_is_decoded_once_to_the_pixels_of_decoding_it_for_each_view(monkeypatch, decoder):
    rng = np.random.Generator(np.random.Philox(3))
    picture = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    draws = uniforms(1, 0, 0, [7], 0, 23)[0, CROP].tolist(), uniforms(1, 0, 0, [7], 0, 23, view=1)[0, CROP].tolist()
    calls = []
    module = __import__("vitscale.data.decode", fromlist=["x"])
    for owner, name in ((module, "decode_checked"), (module, "decode_above"), (native, "crop")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, real=real, **named: (calls.append(1), real(*given, **named))[1])
    for kind in (".png", ".jpg"):
        data = cv2.imencode(kind, picture)[1].tobytes()
        for sound in (False, True):
            cuts = [Cut(RandomCrop((0.5, 1.0)), size, row, np.empty((size, size, 3), np.uint8))
                    for size, row in zip((96, 48), draws, strict=True)]
            calls.clear()
            decode_views(data, cuts, sound=sound)
            assert len(calls) == 1
            for cut in cuts:        # at least two thirds of the pixels are wanted: nothing is reduced
                assert np.array_equal(cut.out, decode(data, cut.crop, cut.size, 3, cut.draws))


def test_chances_come_as_often_as_they_say_and_in_their_order():
    augment = Augment(**COLOURED)
    n = 4000
    colours = uniforms(0, 0, 0, list(range(n)), 0, COLOURS.stop - COLOURS.start, COLOURS.start)
    stages = list(chances(augment, colours))
    assert [list(stage) for stage in stages] == [["grey"], ["blur"], ["solarize"]]
    for stage, wanted in zip(stages, (0.2, 0.5, 0.3), strict=True):
        (rows, _), = stage.values()
        assert abs(len(rows) / n - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5
    found = operations(augment, uniforms(0, 0, 0, list(range(n)), 0, KEEP), 32, colours)
    jittered = {int(row) for name, low, high in found.parts for row in found.rows[low:high] if name == "brightness"}
    assert abs(len(jittered) / n - 0.8) < 4 * (0.16 / n) ** 0.5
    assert [name for name, _, _ in found.parts][-3:] == ["grey", "blur", "solarize"]
    assert not wants_colours(Augment(color_jitter=0.4))


def test_views_share_no_draws():
    rows = [uniforms(1, 0, 2, [3], repeat, FLIP + 1, view=view) for view in range(4) for repeat in range(3)]
    assert len({row.tobytes() for row in rows}) == 12
