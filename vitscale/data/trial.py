"""One decode, in a process that may fall over it: `python -m vitscale.data.trial WHAT < IMAGE`, with WHAT as crumbs.py writes it, or null
for the whole image."""

import json
import sys

import numpy as np

from vitscale.data.bad import BadSample
from vitscale.data.crop import CentreCrop, RandomCrop
from vitscale.data.image import decode_whole
from vitscale.data.native import MARK_WORDS

_TIMES = 20         # what is written past its end does not always end a process at once


def main() -> None:
    asked, data = json.loads(sys.argv[1]), sys.stdin.buffer.read()
    if asked is None:
        for _ in range(_TIMES):
            try:
                decode_whole(data)
            except BadSample:
                return
        return
    from vitscale.data.decode import decode  # imports torch

    crop = RandomCrop(tuple(asked["scale"]), tuple(asked["ratio"])) if asked["random"] else CentreCrop(asked["crop"])
    marks = np.zeros((7, MARK_WORDS), np.uint32)
    for _ in range(_TIMES):
        try:
            decode(data, crop, asked["image"], asked["channels"], asked["draws"], asked["exif"], asked["sound"], marks=marks)
        except BadSample:
            return


if __name__ == "__main__":
    main()
