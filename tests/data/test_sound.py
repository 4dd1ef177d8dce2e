"""Rows below a crop are left out only of images that are known to be sound, and no pixel changes by it."""

import io

import corrupt
import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from vitscale.data import jpeg, native, open_index, open_stream
from vitscale.data.bad import BadSample
from vitscale.data.crop import DRAWS, RandomCrop
from vitscale.data.decode import decode
from vitscale.data.decoded_before import DecodedImages, sum_of
from vitscale.data.draws import uniforms
from vitscale.data.header import read_header
from vitscale.recipe.load import check_recipe

CHINA = Image.fromarray(load_sample_images().images[0])
WRITERS = {"baseline": {}, "restarts_at_rows": {"restart_marker_rows": 1}, "restarts_anywhere": {"restart_marker_blocks": 3},
           "progressive": {"progressive": True}, "optimised": {"optimize": True}}
SAMPLINGS = {"4:4:4": 0x111111, "4:4:0": 0x121111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:1:1": 0x411111}


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def lasting(data):
    """Every height above each bottom, colours and scales: whether it is that of the whole image, and whether fewer rows were decoded."""
    same, fewer = True, 0
    for channels in (3, 1):
        for scale in (1, 2, 4, 8):
            whole = jpeg.pixels(data, channels, read_header(data), scale)
            for bottom in range(1, len(whole) + 1):
                above = jpeg.pixels_above(data, channels, read_header(data), scale, bottom)
                same &= above.shape[1:] == whole.shape[1:] and np.array_equal(above[:bottom], whole[:bottom])
                fewer += len(above) < len(whole)
    return same, fewer


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_rows_above_are_those_of_the_whole_image(writer, mode, subsampling):
    for size in ((90, 71), (33, 48)):
        same, fewer = lasting(encode(CHINA.resize(size).convert(mode), quality=90, subsampling=subsampling, **WRITERS[writer]))
        assert same
        assert fewer > size[1]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_they_are_so_for_every_sampling_of_colour(sampling):
    pixels = np.asarray(CHINA.resize((61, 83)))
    coded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]])[1].tobytes()
    assert lasting(coded)[0]


def test_a_crop_of_a_sound_image_is_the_same(decoder):
    formats = [encode(CHINA), encode(CHINA, progressive=True), encode(CHINA.convert("L")), encode(CHINA.convert("CMYK"))]
    padded = formats[0][:-2] + bytes([5] * 3) + formats[0][-2:]
    turned = Image.Exif()
    turned[0x0112] = 6
    png = io.BytesIO()
    CHINA.save(png, "PNG")
    for data in (*formats, padded, encode(CHINA, exif=turned), png.getvalue()):
        for row in uniforms(0, 0, 0, range(4), 0, DRAWS).tolist():
            for size in (32, 224):
                pixels = [decode(data, RandomCrop(), size, 3, row, True, sound) for sound in (False, True)]
                assert np.array_equal(*pixels)


def test_a_sum_tells_bytes_from_others():
    sound = DecodedImages(10)
    rng = np.random.Generator(np.random.Philox(0))
    data = rng.integers(0, 256, 1003, np.uint8).tobytes()
    others = set()
    for bit in range(8 * len(data)):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        others.add(sum_of(bytes(other)))
    for cut in range(1, 20):
        others |= {sum_of(data[:-cut]), sum_of(data + bytes(cut)), sum_of(data[:500] + data[500 + cut:] + bytes(cut))}
    assert sum_of(data) not in others
    assert sum_of(b"") > 0
    assert not sound.contains(3, sum_of(data))
    sound.note(3, sum_of(data))
    assert sound.contains(3, sum_of(data))
    assert not sound.contains(4, sum_of(data))


def test_marks_are_those_of_the_same_bytes():
    sound = DecodedImages(3)
    mine = sound.marks(1, 77)
    mine[:] = 5                                     # written by a decoder, which may fail
    assert not sound.marks(1, 77).any()
    sound.note(1, 77, mine)
    assert (sound.marks(1, 77) == 5).all()
    assert not sound.marks(0, 77).any()
    assert not sound.marks(1, 78).any()             # of other bytes at that place
    seen = []

    class Watched(np.ndarray):
        def __setitem__(self, place, value):
            seen.append(sound.marks(1, 77).any() or sound.marks(1, 88).any())
            super().__setitem__(place, value)

    sound._marks = sound._marks.view(Watched)
    sound.note(1, 88, mine + 1)
    assert seen == [False]                          # who asks in that moment gets none
    assert (sound.marks(1, 88) == 6).all()
    assert sound.contains(1, 88)


def test_marks_that_change_while_they_are_copied_are_not_used():
    sound = DecodedImages(1)
    sound.note(0, 77, sound.marks(0, 77) + np.uint32(5))

    class Overtaken(np.ndarray):
        def __getitem__(self, place):
            copied = super().__getitem__(place).view(np.ndarray).copy()
            sound._marks = sound._marks.view(np.ndarray)
            sound.note(0, 88, copied + np.uint32(1))      # another thread, after the first look and before the second
            return copied

    sound._marks = sound._marks.view(Overtaken)
    assert not sound.marks(0, 77).any()


def test_a_set_larger_than_the_tables_is_only_known_in_part(monkeypatch):
    monkeypatch.setattr("vitscale.data.decoded_before._MOST", 4)
    monkeypatch.setattr("vitscale.data.decoded_before._MOST_MARKED", 3)
    sound = DecodedImages(10)
    for sample in range(10):
        sound.note(sample, sample + 100, sound.marks(sample, sample + 100) + np.uint32(sample))
    assert [sample for sample in range(10) if sound.contains(sample, sample + 100)] == [6, 7, 8, 9]
    assert [int(sound.marks(sample, sample + 100).max()) for sample in range(10)] == [0] * 7 + [7, 8, 9]
    assert sum(one.nbytes for one in (sound._marks, sound._marked)) == 3 * 92


def test_marks_take_no_room_where_they_do_not_pay():
    whole = DecodedImages(10, marked=False)         # crops that are all of the middle
    assert whole.marks(3, 103) is None
    whole.note(3, 103)
    assert whole.contains(3, 103)
    plain = DecodedImages(10)                       # a PNG has none
    plain._marks.flags.writeable = False            # so no page of them is touched
    plain.note(3, 103, plain.marks(3, 103))
    assert plain.contains(3, 103)


def overwritten(data, seed):
    """512 bytes of coded data replaced by others: no zeros, no markers."""
    at = 1500 + 50 * seed
    noise = np.random.Generator(np.random.Philox(seed)).integers(1, 255, 512, np.uint8).tobytes()
    return data[:at] + noise + data[at + 512:]


def refused(data):
    with pytest.raises(BadSample):
        jpeg.pixels(data, 3, read_header(data))
    return data


def test_what_decoding_fewer_rows_would_miss():
    """Why an image must be known: of what is wrong above, only the whole image's decoder knows."""
    data = corrupt.jpeg(corrupt.VICTIM)
    broken = refused(overwritten(data, 0))
    assert not np.array_equal(*(jpeg.pixels_above(one, 3, read_header(one), 1, 80) for one in (broken, data)))


def rot(path):
    """Such damage to the victim's image, which neither the shard's size nor its date shows."""
    raw, data = path.read_bytes(), corrupt.jpeg(corrupt.VICTIM)
    corrupt.unchanged_outside(path, lambda: path.write_bytes(raw.replace(data, refused(overwritten(data, 0)))))


def recipe(urls):
    return check_recipe({
        "name": "t", "model": {"size": "tiny", "image": 8, "patch": 4, "classes": corrupt.CLASSES},
        "data": {"train": urls, "lanes": 2, "workers": 2, "max_bad_fraction": 0.9, "prefetch": 1},
        "optim": {"lr": 1e-3}, "global_batch": 2, "duration": "4 epochs", "seed": 3,
    }, "test")


def test_a_stream_decodes_less_once_it_knows_and_finds_what_rots_meanwhile(tmp_path, monkeypatch, decoder):
    urls = corrupt.build(tmp_path)
    index, total, bad, above = open_index(urls), sum(corrupt.COUNTS), [], []
    real, real_crop = jpeg.pixels_above, native.crop

    def crop(*given, whole, marks):
        above.extend([given] * (decoder == "native" and not whole))
        assert whole or marks.any()                     # of each image that is known there are some
        return real_crop(*given, whole=whole, marks=marks)

    monkeypatch.setattr(jpeg, "pixels_above", lambda *given: above.append(given) or real(*given))
    monkeypatch.setattr(native, "crop", crop)
    with open_stream(recipe(urls), index, rank=0, world=1, micro_batch=2, on_bad=bad.append) as stream:
        for batch in stream.until(4 * total):
            for micro in batch.micro:
                for slot, sample in enumerate(micro.ids.tolist()):
                    row = uniforms(3, 0, batch.epoch, [sample], 0, DRAWS)[0].tolist()
                    if micro.weight[slot] and not (bad and sample == corrupt.VICTIM):
                        assert np.array_equal(micro.images[slot], decode(corrupt.jpeg(sample), RandomCrop(), 8, 3, row))
            if batch.end == total:
                assert len(above) <= 4              # what was fetched ahead
            if batch.end == 2 * total:
                assert len(above) >= total
                rot(tmp_path / "s-001.tar")
    assert {(row["reason"], row["id"]) for row in bad} == {("decode", corrupt.VICTIM)}
    assert 1 <= len(bad) <= 2                       # once if it had been fetched ahead
