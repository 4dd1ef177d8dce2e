"""Decodes the images of a folder, as they are and then damaged, for some seconds: with the native decoder and with the libraries alone.
They may be refused, and nothing else, and both must come to the same.

    python decode_fuzz.py FOLDER SECONDS [SEED]         prints how many were tried and how many taken
"""

import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from native_fuzz import damage

from vitscale.data import native
from vitscale.data.bad import BadSample
from vitscale.data.crop import CentreCrop, RandomCrop
from vitscale.data.decode import decode
from vitscale.data.image import decode_whole


def outcome(data, given, channels):
    """Of every way the bytes of a sample are looked at: pixels, or why there are none."""
    marks = np.zeros((7, 3), np.uint32)
    try:
        met = decode(data, *given, marks=marks)
        return b"".join(pixels.tobytes() for pixels in (met, decode(data, *given, sound=True, marks=marks), decode_whole(data, channels)))
    except BadSample as error:
        return f"{error.reason}: {error}"


def main(folder, seconds, seed=0):
    torch.set_num_threads(1)
    rng = random.Random(seed)
    images = [file.read_bytes() for file in sorted(Path(folder).iterdir())]
    module, tried, taken, end = native._module, 0, 0, time.monotonic() + seconds
    last = Path(folder).with_suffix(".last")                    # what it was, should it be the last
    while tried < len(images) or time.monotonic() < end:
        data = images[tried] if tried < len(images) else damage(rng.choice(images), rng)
        rule = rng.choice((CentreCrop(), RandomCrop((0.3, 1.0)), RandomCrop((1.0, 1.0), (0.5, 2.0))))
        channels = rng.choice((1, 3))
        given = rule, rng.choice((2, 5, 11, 24, 60)), channels, [rng.random() for _ in range(22)], rng.random() < 0.5
        last.write_bytes(data)
        found = []
        for native._module in (module, None):
            found.append(outcome(data, given, channels))
        if found[0] != found[1]:
            print("they differ:", [one if isinstance(one, str) else "pixels" for one in found], given[:3], last)
            sys.exit(3)
        tried, taken = tried + 1, taken + isinstance(found[0], bytes)
    print(tried, taken)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:]))
