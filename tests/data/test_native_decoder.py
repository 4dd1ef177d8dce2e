"""The native decoder gives the libraries' pixels to the last bit, takes only what they take, and falls on no bytes whatever."""

import importlib.util
import io
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import corpus
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

import vitscale.data.native
from vitscale.data import native
from vitscale.data.bad import BadSample
from vitscale.data.crop import DRAWS, CentreCrop, RandomCrop
from vitscale.data.decode import decode, resize
from vitscale.data.draws import uniforms
from vitscale.data.image import checked_header, decode_checked
from vitscale.data.resample import resample

CHINA, FLOWER = (Image.fromarray(picture) for picture in load_sample_images().images)       # 640 x 427
WRITERS = {"standard": {}, "optimised": {"optimize": True}, "restarts_at_rows": {"restart_marker_rows": 1},
           "restarts_anywhere": {"restart_marker_blocks": 3}, "fine": {"quality": 100, "optimize": True}, "coarse": {"quality": 5}}
SAMPLINGS = {"4:4:4": 0x111111, "4:4:0": 0x121111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:1:1": 0x411111}
BUILD = runpy.run_path(str(Path(vitscale.data.native.__file__).parent / "build.py"))
FUZZ = Path(__file__).parent / "native_fuzz.py"


@pytest.fixture(autouse=True)
def there():
    if not native.available():
        assert not os.environ.get("CI"), native.describe()
        pytest.skip(native.describe())


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def taken(data, channels, scale, box, resized, window, whole=True, marks=None):
    out = np.full((*window[2:], channels), 7, np.uint8)
    return out if native.crop(data, scale, [native.NativeCut(out, box, resized, window)], whole, marks) else None


def no_marks(count=7):
    return np.full((count, native.MARK_WORDS), 77, np.uint32)


def wanted(data, channels, scale, box, resized, window):
    top, left, h, w = box
    row, column, rows, columns = window
    pixels = decode_checked(data, channels, checked_header(data), scale)
    made = resample(pixels, box, scale, *resized) if scale > 1 else resize(pixels[top:top + h, left:left + w], *resized)
    return made[row:row + rows, column:column + columns]


def geometry(rng, height, width):
    """A random box, what it is resized to, and a window of that."""
    top, left = int(rng.integers(height)), int(rng.integers(width))
    box = top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))
    resized = int(rng.integers(1, 90)), int(rng.integers(1, 90))
    row, column = int(rng.integers(resized[0])), int(rng.integers(resized[1]))
    return box, resized, (row, column, int(rng.integers(1, resized[0] - row + 1)), int(rng.integers(1, resized[1] - column + 1)))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crops_are_those_of_the_libraries_to_the_last_bit(writer, mode):
    rng = np.random.Generator(np.random.Philox(1))
    for size in ((640, 427), (90, 71), (33, 48), (16, 8), (1, 9), (300, 1)):
        data = encode(CHINA.resize(size).convert(mode), **WRITERS[writer])
        for _ in range(12):
            scale = int(rng.choice([1, 1, 2, 4, 8]))
            place = geometry(rng, size[1], size[0])
            for channels in (3, 1):
                want = wanted(data, channels, scale, *place)
                marks = no_marks(int(rng.integers(1, 40)))
                for whole, given_marks in ((True, None), (False, None), (True, marks), (False, marks)):
                    got = taken(data, channels, scale, *place, whole, given_marks)
                    assert np.array_equal(got, want), (size, scale, place, channels, whole)


@pytest.mark.parametrize("channels", [3, 1])
def test_many_crops_of_an_image_are_those_of_each_alone(channels):
    """Of any size and place, apart from each other, inside each other, or a single row that begins where a pair of rows ends."""
    rng = np.random.Generator(np.random.Philox(8))
    for size in ((640, 427), (90, 71), (33, 48), (1, 9), (300, 1)):
        data, marks = encode(CHINA.resize(size)), no_marks()
        for _ in range(8):
            scale = int(rng.choice([1, 1, 2, 4, 8]))
            places = [geometry(rng, size[1], size[0]) for _ in range(int(rng.integers(1, 12)))]
            places += [((row, 0, 1, 1), (1, 1), (0, 0, 1, 1)) for row in rng.integers(0, size[1], 3).tolist()]
            for whole in (True, False):
                cuts = [native.NativeCut(np.full((*window[2:], channels), 7, np.uint8), box, resized, window)
                        for box, resized, window in places]
                assert native.crop(data, scale, cuts, whole, marks)
                for cut in cuts:
                    assert np.array_equal(cut.out, taken(data, channels, scale, *cut[1:])), (size, scale, cut[1:], whole)


def test_one_bad_cut_among_many_is_told():
    data = encode(CHINA)
    good = np.zeros((8, 8, 3), np.uint8), (0, 0, 9, 9), (8, 8), (0, 0, 8, 8)
    crop = native._module.crop
    assert crop(data, 3, 1, True, None, (good, good)) is None
    assert "not inside" in crop(data, 3, 1, True, None, (good, (good[0], (0, 0, 428, 9), *good[2:])))
    read_only = np.zeros((8, 8, 3), np.uint8)
    read_only.flags.writeable = False
    for wrong in ((), (good, 7), (good, good[:3]), (good, (np.zeros(191, np.uint8), *good[1:])), (good, (read_only, *good[1:])),
                  (good, (good[0], (0, 0, 9), *good[2:])), [good], (good, (good[0], (0, 0, 9, 2**31), *good[2:]))):
        with pytest.raises((TypeError, ValueError, BufferError, OverflowError)):
            crop(data, 3, 1, True, None, wrong)
    for channels, scale in ((2, 1), (3, 3), (3, 0)):
        with pytest.raises(ValueError, match="channels"):
            crop(data, channels, scale, True, None, (good,))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_so_they_are_for_every_sampling_of_colour_and_every_edge(sampling):
    """Boxes that begin and end at each row and column: where blocks meet, and one before and after."""
    pixels = np.asarray(CHINA.resize((83, 61)))
    data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]])[1].tobytes()
    for scale in (1, 2, 4, 8):
        height, width = -(-61 // scale), -(-83 // scale)
        whole, marks = decode_checked(data, 3, checked_header(data), scale), no_marks()
        for edge in range(max(height, width)):
            for box in ((min(edge, height - 1), 0, 1, width), (0, min(edge, width - 1), height, 1),
                        (0, 0, min(edge + 1, height), min(edge + 1, width))):
                top, left, h, w = box
                for all_of_it in (True, False):     # written, then read
                    in_full = [scale * edge for edge in box]
                    in_full[2:] = min(in_full[2], 61 - in_full[0]), min(in_full[3], 83 - in_full[1])     # the last may stand for less
                    got = taken(data, 3, scale, in_full, (h, w), (0, 0, h, w), all_of_it, marks)
                    exact = in_full[2:] == [scale * h, scale * w]
                    want = whole[top:top + h, left:left + w] if exact else resample(whole, in_full, scale, h, w)
                    assert np.array_equal(got, want), (scale, box)


def test_what_lies_above_a_mark_is_not_looked_at():
    """The coded data before the mark that is used may be anything; that before the one after it, not."""
    data, marks = encode(CHINA), no_marks()
    place = (300, 100, 90, 200), (45, 100), (0, 0, 45, 100)
    want = taken(data, 3, 1, *place, True, marks)
    rows = -(-427 // 16)
    stand_at = [(number + 1) * rows // 8 for number in range(7)]
    used = max(number for number, row in enumerate(stand_at) if 16 * row < 300 - 5)     # cubic weights reach a few rows above the box
    begin = data.index(b"\xff\xda") + 14
    for number, same in ((used, True), (used + 1, False)):
        broken = bytearray(data)
        coded = int(marks[number, 0]) // 8 - 400                                        # stuffed zeros lie before it, so it is further on
        broken[begin:begin + coded] = [byte if byte >= 0xFE or data[begin + at - 1] == 0xFF else byte ^ 1       # no marker comes or goes
                                       for at, byte in enumerate(data[begin:begin + coded])]
        got = taken(bytes(broken), 3, 1, *place, False, marks)
        assert (got is not None and np.array_equal(got, want)) == same


def test_there_are_no_marks_of_what_has_restarts_or_the_libraries_decode():
    place = (20, 20, 40, 40), (40, 40), (0, 0, 40, 40)
    marks = no_marks()
    assert taken(encode(CHINA, restart_marker_rows=1), 3, 1, *place, True, marks) is not None
    assert not marks.any()
    padded = encode(CHINA)[:-2] + b"\x05\x05\xff\xd9"                                     # read to the end, then refused
    for data in (padded, encode(FLOWER, progressive=True)):
        marks = no_marks()
        pixels = decode(data, RandomCrop(), 32, 3, [0.3] * (DRAWS - 2) + [1 - 1e-9] * 2, marks=marks)       # the crop lies at the bottom
        assert not marks.any()
        again = decode(data, RandomCrop(), 32, 3, [0.3] * (DRAWS - 2) + [1 - 1e-9] * 2, sound=True, marks=marks)
        assert np.array_equal(again, pixels)


def test_an_image_of_few_rows_has_fewer_marks():
    marks = no_marks()
    taken(encode(CHINA.resize((64, 40)), subsampling=2), 3, 1, (0, 0, 40, 64), (8, 8), (0, 0, 8, 8), True, marks)
    assert (marks[:, 0] > 0).tolist() == [False] * 2 + [True] * 5          # three rows of blocks: before the first there is nothing to skip
    assert len(set(marks[:, 0].tolist())) == 3


def test_large_images_and_strong_reduction():
    big = encode(CHINA.resize((3000, 2000)))
    for box, resized, window in (((0, 0, 2000, 3000), (256, 384), (16, 80, 224, 224)), ((1999, 0, 1, 3000), (3, 5), (0, 0, 3, 5)),
                                 ((5, 2990, 1995, 10), (224, 224), (0, 0, 224, 224)), ((0, 0, 2000, 3000), (2, 2), (0, 0, 2, 2))):
        assert np.array_equal(taken(big, 3, 1, box, resized, window), wanted(big, 3, 1, box, resized, window))


@pytest.mark.parametrize("rule", [RandomCrop(), CentreCrop()])
def test_decode_gives_the_same_with_it_and_without(rule, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 8
    images = [encode(CHINA), encode(FLOWER.convert("L")), encode(CHINA, exif=turned), encode(FLOWER, progressive=True),
              encode(CHINA.convert("CMYK")), encode(CHINA)[:-2] + b"\x05\x05\x05\xff\xd9"]
    rows = uniforms(0, 0, 0, range(3), 0, DRAWS).tolist()

    def all_of_them():
        return [decode(data, rule, size, channels, row, True, sound)
                for data in images for size in (32, 224) for channels in (3, 1) for row in rows for sound in (False, True)]

    calls = []
    real = native.crop
    monkeypatch.setattr(native, "crop", lambda *given, **named: calls.append(real(*given, **named)) or calls[-1])
    ours = all_of_them()
    assert 0 < sum(calls) < len(calls)              # progressive and padded ones are left to the libraries
    monkeypatch.setattr(native, "_module", None)
    assert all(np.array_equal(*pair) for pair in zip(ours, all_of_them(), strict=True))


def test_it_writes_where_it_is_told():
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    row = uniforms(0, 0, 0, [0], 0, DRAWS)[0].tolist()
    given_back = decode(encode(CHINA), RandomCrop(), 32, draws=row, out=batch[1])
    assert np.shares_memory(given_back, batch)
    assert np.array_equal(batch[1], decode(encode(CHINA), RandomCrop(), 32, draws=row))
    assert not batch[[0, 2]].any()
    for out in (np.zeros((32, 32, 3), np.uint8)[:, ::2], np.zeros((31, 32, 3), np.uint8)):
        with pytest.raises((ValueError, TypeError)):
            native.crop(encode(CHINA), 1, [native.NativeCut(out, (0, 0, 9, 9), (32, 32), (0, 0, 32, 32))], True)


def test_boxes_outside_are_not_taken():
    data, window = encode(CHINA), (0, 0, 8, 8)
    for box in ((0, 0, 428, 640), (-1, 0, 9, 9), (0, 640, 1, 1), (0, 0, 0, 5), (2**31 - 1, 0, 2, 2)):
        assert taken(data, 3, 1, box, (8, 8), window) is None
    for resized, part in (((7, 8), window), ((8, 8), (1, 0, 8, 8)), ((8, 8), (0, -1, 8, 8)), ((2**31 - 1, 8), window)):
        assert taken(data, 3, 1, (0, 0, 9, 9), resized, part) is None


# What is wrong

def damaged(data, kind, at, amount, value):
    """`amount` bytes from `at` on: overwritten, zeroed, cut out, cut off, doubled; or a bit flipped."""
    at %= len(data)
    end = min(at + amount, len(data))
    middle = {"overwritten": bytes((value + 37 * n) % 256 for n in range(end - at)), "zeroed": bytes(end - at), "cut_out": b"",
              "doubled": 2 * data[at:end], "flipped": bytes([data[at] ^ 1 << value % 8]) + data[at + 1:end]}
    return data[:at] + b"\xff\xd9" if kind == "cut_off" else data[:at] + middle[kind] + data[end:]


SMALL = [encode(CHINA.resize((120, 90)), **options) for options in WRITERS.values()]
SMALL += [encode(FLOWER.resize((50, 70)).convert("L")), encode(FLOWER.resize((50, 70)), subsampling=0)]
HURTS = st.lists(st.tuples(st.sampled_from(["overwritten", "zeroed", "cut_out", "cut_off", "doubled", "flipped"]),
                           st.integers(0, 10_000), st.integers(1, 600), st.integers(0, 255)), min_size=1, max_size=3)


def made_of(data, row):
    try:
        return decode(data, RandomCrop(), 24, 3, row)
    except BadSample as error:
        return error.reason, str(error)


ROWS = uniforms(0, 0, 0, range(8), 0, DRAWS).tolist()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SMALL), HURTS, st.sampled_from(ROWS))
def test_what_comes_of_damage_is_what_the_libraries_make_of_it(data, hurts, row):
    for hurt in hurts:
        data = damaged(data, *hurt) or b"\xff"
    ours = made_of(data, row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_module", None)
        theirs = made_of(data, row)
    assert np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs


def test_no_image_is_decoded_with_the_tables_of_another():
    data = encode(CHINA.resize((64, 64)))
    table = data.index(b"\xff\xdb") + 4
    without = data[:table] + b"\x01" + data[table + 1:]          # the table of brightness becomes that of colour
    box = 0, 0, 64, 64
    for _ in range(3):
        assert taken(data, 3, 1, box, (8, 8), (0, 0, 8, 8)) is not None
        assert taken(without, 3, 1, box, (8, 8), (0, 0, 8, 8)) is None


def test_bad_codes_are_told_at_once():
    """Bytes overwritten above the crop, whatever comes of the image's end: libjpeg's own decoder tells nearly none of them so."""
    found, at_large = 0, np.random.Generator(np.random.Philox(3))
    data = encode(CHINA, quality=90, optimize=True)
    for _ in range(100):
        at = int(at_large.integers(2000, len(data) // 2))
        broken = data[:at] + at_large.integers(1, 255, 512, np.uint8).tobytes() + data[at + 512:]
        found += taken(broken, 3, 1, (300, 0, 100, 100), (32, 32), (0, 0, 32, 32), whole=False) is None
    assert found >= 90


def run_fuzz(library, folder, environment=(), seconds=6):
    for name, data in corpus.jpegs().items():
        (folder / name.replace(":", "")).write_bytes(data)
    return subprocess.run([sys.executable, str(FUZZ), str(library), str(seconds), str(folder)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **dict(environment)})


@pytest.mark.slow       # six seconds of damaged images
def test_no_damage_brings_it_down(tmp_path):
    done = run_fuzz(Path(vitscale.data.native.__file__).parent / BUILD["NAME"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    tried, taken = map(int, done.stdout.split())
    assert tried > 500
    assert 0 < taken < tried


@pytest.mark.slow       # compiles it anew, then as above
def test_no_damage_makes_it_read_or_write_where_it_must_not(tmp_path):
    """Under AddressSanitizer, with undefined behaviour trapped, each image in memory of its own.  It finds a planted mistake."""
    compiler = os.environ.get("CC", "gcc")
    asan = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    with tempfile.TemporaryDirectory() as name:
        flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize=alignment,pointer-overflow", "-fno-sanitize-recover=undefined",
                 "-DMOST_IDLE=0"]
        assert BUILD["build"](Path(name), flags) == ""
        environment = {"LD_PRELOAD": os.path.realpath(asan), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
        library = Path(name) / BUILD["NAME"]
        done = run_fuzz(library, tmp_path, environment.items(), seconds=15)
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout.split()[0]) > 300
        planted = Path(name) / "planted"
        planted.mkdir()
        assert BUILD["build"](planted, [*flags, "-DSPARE=0"]) == ""       # without room behind the coded data
        done = run_fuzz(planted / BUILD["NAME"], tmp_path, environment.items())
        assert done.returncode != 0
        assert "AddressSanitizer" in done.stderr


# How it is built

def test_it_is_built_from_these_sources():
    assert BUILD["digest"]() == native._module.SOURCES, "python vitscale/data/native/build.py"


def test_it_compiles_without_a_warning_and_loads(tmp_path):
    assert BUILD["build"](tmp_path, ["-Werror"]) == ""
    spec = importlib.util.spec_from_file_location("_crop", tmp_path / BUILD["NAME"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "libjpeg-turbo" in module.LIBJPEG
    assert os.listdir(tmp_path) == [BUILD["NAME"]]


def test_with_another_libjpeg_than_it_was_built_with_it_does_not_load(tmp_path):
    assert BUILD["build"](tmp_path, ["-ULIBRARY", '-DLIBRARY="libjpeg.so.62.99.0"']) == ""
    spec = importlib.util.spec_from_file_location("_crop", tmp_path / BUILD["NAME"])
    with pytest.raises(ImportError, match=r"built with libjpeg\.so\.62\.99\.0 and finds libjpeg\.so\.[0-9.]+; build it again"):
        importlib.util.module_from_spec(spec)


def test_without_a_compiler_or_headers_it_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    assert "jpeglib.h" in BUILD["build"](tmp_path, ["-nostdinc"]) or "stddef.h" in BUILD["build"](tmp_path, ["-nostdinc"])
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert BUILD["build"](tmp_path) == "there is no C compiler"
    assert os.listdir(tmp_path) == []


def test_without_it_doctor_says_what_runs(monkeypatch):
    assert native.describe().startswith("native: libjpeg-turbo")
    monkeypatch.setattr(native, "_module", None)
    assert native.describe().startswith("simplejpeg")
