"""Strict decoding: no JPEG with zeroed bytes passes, no sound one is refused."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from vitscale.data import jpeg
from vitscale.data.bad import BadSample
from vitscale.data.crop import CentreCrop
from vitscale.data.decode import decode
from vitscale.data.header import read_header
from vitscale.data.image import decode_whole

PHOTOS = [Image.fromarray(picture) for picture in load_sample_images().images]      # 640 x 427
WRITERS = {
    "standard_tables": {"quality": 75}, "no_subsampling": {"quality": 95, "subsampling": 0},
    "restarts": {"quality": 85, "restart_marker_rows": 1},
    "optimised": {"quality": 85, "optimize": True}, "optimised_fine": {"quality": 97, "optimize": True},
}


def pixels(data, channels, scale=1):
    return jpeg.pixels(data, channels, read_header(data), scale)


def zeroed(data):
    return jpeg.zeroed(data, read_header(data))


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def scan_of(data):
    """Where the coded data of the first scan begins."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2:at + 4], "big")


def zeroings(data, count, tries, seed=0):
    """The image with `count` bytes of its coded data zeroed, at random places."""
    low, high = scan_of(data), data.rfind(b"\xff\xd9") - count
    for at in np.random.Generator(np.random.Philox(seed)).integers(low, high, tries).tolist():
        yield data[:at] + bytes(count) + data[at + count:]


def refused(data, scale=1):
    try:
        pixels(data, 3, scale)
    except BadSample as error:
        return error.reason == "decode"
    return False


@pytest.mark.parametrize("writer", WRITERS)
def test_a_zeroed_block_is_always_found(writer):
    for image in PHOTOS:
        data = encode(image, **WRITERS[writer])
        for broken in zeroings(data, 512, 20):
            assert cv2.imdecode(np.frombuffer(broken, np.uint8), cv2.IMREAD_COLOR) is not None     # opencv and PIL paint over it
            assert np.asarray(Image.open(io.BytesIO(broken))).shape == (427, 640, 3)
            assert refused(broken)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_decoded_small_it_is_as_strict(scale):
    for options in ({"quality": 75}, {"quality": 90, "optimize": True}, {"quality": 85, "progressive": True}):
        data = encode(PHOTOS[1], **options)
        for broken in (*zeroings(data, 512, 20), data[:20_000] + data[20_400:], data[:20_000] + b"\xff\xd9"):
            full, small = (refused(broken, at) for at in (1, scale))
            assert small == full
        padded = data[:-2] + bytes([5] * 3) + data[-2:]
        assert (pixels(padded, 3, scale) == pixels(data, 3, scale)).all()


def test_the_decoders_warnings_alone_miss_some():
    """Why zeros are looked for: where the blocks decoded from them end on the right bit by chance, libjpeg warns of nothing."""
    data = encode(PHOTOS[0], quality=75)
    silent = 0
    for broken in zeroings(data, 64, 100):
        try:
            simplejpeg.decode_jpeg(broken)
        except ValueError:
            continue
        silent += 1
        assert zeroed(broken) is not None
    assert silent > 5


def test_zeros_in_a_progressive_image_are_mostly_found():
    """A block of 512: its refinement bits may be zero, and then only what follows shows it."""
    data = encode(PHOTOS[1], quality=85, progressive=True)
    assert sum(refused(broken) for broken in zeroings(data, 512, 100)) >= 95


@pytest.mark.parametrize("options", [*WRITERS.values(), {"progressive": True}, {"quality": 1}, {"quality": 10, "optimize": True}])
@pytest.mark.parametrize("picture", ["photo", "black", "white", "stripes", "noise", "gradient", "dots"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_no_sound_image_is_refused(picture, mode, options):
    rows, columns = np.mgrid[:256, :256]
    image = {
        "photo": lambda: PHOTOS[0],
        "black": lambda: Image.new("RGB", (1600, 1200)),
        "white": lambda: Image.new("RGB", (1600, 1200), "white"),
        "stripes": lambda: Image.fromarray((columns // 4 % 2 * 255).astype(np.uint8)),
        "noise": lambda: Image.fromarray(np.random.Generator(np.random.Philox(1)).integers(0, 256, (256, 256, 3), np.uint8)),
        "gradient": lambda: Image.fromarray(((rows + columns) // 2).astype(np.uint8)),
        "dots": lambda: Image.fromarray(((rows % 8 == 0) * (columns % 8 == 0) * 40 + 100).astype(np.uint8)),    # an impulse in each block
    }[picture]().convert(mode)
    data = encode(image, **options)
    assert zeroed(data) is None
    for channels in (3, 1):
        ours = pixels(data, channels)
        theirs = Image.open(io.BytesIO(data))
        if mode == "L" or (mode == "RGB" and channels == 1):
            theirs.draft("L", theirs.size)              # grey as it is coded, not made of colours again
        theirs = np.asarray(theirs.convert("RGB" if channels == 3 else "L"))
        assert (ours == theirs.reshape(ours.shape)).all()
        assert ours.shape == (image.height, image.width, channels)


def test_zeros_outside_coded_data_are_none_of_its_business():
    data = encode(PHOTOS[0], quality=75, exif=b"Exif\0\0" + bytes(4000), comment=bytes(3000))
    assert zeroed(data) is None
    assert zeroed(data + bytes(5000)) is None
    assert (pixels(data + bytes(5000), 3) == pixels(encode(PHOTOS[0], quality=75), 3)).all()


def test_the_place_of_the_zeros_is_told():
    data = encode(PHOTOS[0], quality=75)
    at = scan_of(data) + 5000
    broken = data[:at] + bytes(512) + data[at + 512:]
    assert abs(zeroed(broken) - at) <= 2
    with pytest.raises(BadSample, match=rf"zeroed bytes at its byte {zeroed(broken)}"):
        pixels(broken, 3)


def test_other_damage_is_refused():
    data = encode(PHOTOS[0], quality=75)
    table = data.index(b"\xff\xdb")
    assert refused(data[:table + 8] + b"\0" + data[table + 9:])                 # a quantisation step of 0
    assert refused(data[:20_000] + data[20_400:])                               # bytes missing in the middle
    assert refused(data[:20_000] + b"\xff\xd9")                                 # a false end
    with pytest.raises(BadSample, match="marker is missing"):
        pixels(data[:table] + bytes(200) + data[table + 200:], 3)


def test_a_few_bytes_of_padding_are_no_damage():
    """As some cameras write them.  The decoder has read ahead and so counts only some."""
    data = encode(PHOTOS[0], quality=90)
    padded = data[:-2] + bytes([5] * 3) + data[-2:]
    with pytest.raises(ValueError, match="2 extraneous bytes"):
        simplejpeg.decode_jpeg(padded)
    assert (pixels(padded, 3) == pixels(data, 3)).all()
    assert refused(data[:-2] + bytes([5] * 4) + data[-2:])


@pytest.mark.parametrize("progressive", [False, True])
def test_whatever_a_header_says_it_gives_pixels_or_a_bad_sample(progressive):
    """Each byte before the coded data in turn, with zeroed bytes after it, so that every table and scan header is read."""
    data = encode(PHOTOS[0].resize((64, 48)), progressive=progressive, quality=60)
    start = scan_of(data)
    data = data[:start + 40] + bytes(64) + data[start + 104:]
    taken = 0
    for at in range(2, start):
        for value in (0, 1, 3, 127, 255, data[at] ^ 1):
            try:
                pixels(data[:at] + bytes([value]) + data[at + 1:], 3)
                taken += 1
            except BadSample:
                pass
    assert taken < 4 * start


def test_a_decoder_that_fails_in_any_other_way_makes_a_bad_sample(monkeypatch):
    def falls(*_):
        return [][0]
    monkeypatch.setattr(jpeg, "zeroed", falls)
    data = encode(PHOTOS[0])
    for read in (decode_whole, lambda data: decode(data, CentreCrop(1.0), 32)):
        with pytest.raises(BadSample, match="its decoder failed with IndexError: list index out of range") as raised:
            read(data)
        assert raised.value.reason == "decode"
