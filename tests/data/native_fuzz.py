"""Throws damaged JPEGs at the native decoder at a path, for some seconds, in this process: it may refuse them, and nothing else.  Between
them it augments noise of any shape by any operations with any numbers.

    python native_fuzz.py PATH SECONDS [FOLDER]     prints how many were tried and how many taken; FOLDER: of more JPEGs to be damaged
"""

import importlib.util
import io
import math
import random
import sys
import time
from array import array
from pathlib import Path

from PIL import Image


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def images(rng):
    noise = Image.frombytes("RGB", (24, 18), rng.randbytes(24 * 18 * 3))
    for size in ((160, 120), (33, 70), (8, 200), (1, 1)):
        picture = noise.resize(size, Image.Resampling.BICUBIC)
        for options in ({}, {"optimize": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}, {"quality": 98}, {"progressive": True}):
            yield encode(picture, **options)
        yield encode(picture.convert("L"))
        yield encode(picture.convert("CMYK"))


def damage(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 64, 400))
        if rng.random() < 0.4:
            at = rng.randrange(min(len(data), 700))             # headers and tables
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:at + length] = rng.randbytes(length)
            case 2:
                data[at:at + length] = bytes(length)
            case 3:
                del data[at:at + length]
            case 4:
                data[at:at] = data[at:at + length]
            case 5:
                data[at:] = b"\xff\xd9"
        if not data:
            return b"\xff"
    return bytes(data)


def augment(module, rng):
    count, height, width, channels = rng.randrange(3), rng.randrange(1, 70), rng.randrange(1, 70), rng.choice((1, 3))
    first = array("q", [0])
    for _ in range(count):
        first.append(first[-1] + rng.randrange(4))
    codes = array("q", [rng.randrange(len(module.OPERATIONS)) for _ in range(first[-1])])
    strange = math.nan, math.inf, -math.inf, 1e300, -1e300, -1.0, 2.0**31, 0.0, 256.0
    numbers = array("d", [rng.choice((rng.choice(strange), rng.uniform(-2, 260), 2**24 * rng.random())) for _ in range(6 * len(codes))])
    pixels = count * height * width * channels
    module.augment(rng.randbytes(pixels), rng.randbytes(count), bytearray(4 * pixels), count, height, width, channels, first, codes,
                   numbers, rng.randbytes(channels), bytes(1024 * channels))


def main(path, seconds, folder=None):
    spec = importlib.util.spec_from_file_location("_crop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = random.Random(0)
    tried, taken, kept, end = 0, 0, bytearray(60), time.monotonic() + seconds
    sound = [*images(rng), *(file.read_bytes() for file in sorted(Path(folder).glob("jpeg*") if folder else ()))]
    while time.monotonic() < end:
        data, channels, scale = damage(rng.choice(sound), rng), rng.choice((1, 3)), rng.choice((1, 1, 2, 4, 8))
        top, left = rng.choice((0, rng.randrange(-1, 200))), rng.choice((0, rng.randrange(-1, 200)))
        box = top, left, rng.randrange(1, 170), rng.randrange(1, 170)
        resized = rng.randrange(1, 60), rng.randrange(1, 60)
        row, column = rng.randrange(resized[0]), rng.randrange(resized[1])
        window = row, column, rng.randrange(1, resized[0] - row + 1), rng.randrange(1, resized[1] - column + 1)
        cuts = [(bytearray(window[2] * window[3] * channels), box, resized, window)]
        for size in rng.choice(((), (5, 33, 8))):               # more of the same image
            box = rng.randrange(100), rng.randrange(100), rng.randrange(1, 60), rng.randrange(1, 60)
            cuts.append((bytearray(size * size * channels), box, (size, size), (0, 0, size, size)))
        whole, marks = rng.random() < 0.7, rng.choice((None, bytearray(84), bytearray(rng.randbytes(36)), kept))
        kept = marks if whole and marks else kept               # another image's, or those of this one before another damage
        taken += module.crop(data, channels, scale, whole, marks, tuple(cuts)) is None
        tried += 1
        augment(module, rng)
    print(tried, taken)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
