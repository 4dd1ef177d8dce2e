"""What can still be seen of a sample that could not be used: read from its shard, decoded with bounds, encoded anew and small."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitscale.cluster.status import LARGEST_RECIPE_BYTES
from vitscale.data import pillow
from vitscale.data.bad import BadSample
from vitscale.data.formats import FORMATS, HEAD, format_of
from vitscale.data.header import read_header, still
from vitscale.data.image import decode_whole
from vitscale.data.index import IMAGES
from vitscale.data.members import Member, Walk, split_name
from vitscale.data.shards import expand
from vitscale.errors import DataError, RecipeError
from vitscale.observe.dashboard.view import QUARANTINE, read_lines
from vitscale.recipe.text import read_yaml
from vitscale.runfolder import ENVIRONMENT, RECIPE, read_object

SIDE = 192                      # pixels of the longer side
_MOST_BYTES = 32 << 20          # of an image that is looked at
_MOST_PIXELS = 50_000_000


def picture(folder: Path, number: int) -> bytes | str:
    """JPEG of the sample in row `number` of quarantine.jsonl, or why there is none.  The bytes of the file itself are never passed on."""
    rows = read_lines(folder / QUARANTINE)
    if not 0 <= number < len(rows):
        return "there is no such sample"
    shard, key = rows[number].get("shard"), rows[number].get("key")
    if rows[number].get("reason") == "crash":
        return "its decoder ended the process that read it; it is not decoded here"
    if not isinstance(shard, str) or not isinstance(key, str):
        return "its row names no sample"
    if "://" in shard:
        return "its shard is remote; nothing is fetched for this page"
    if shard not in _shards_of(folder):
        return "its shard is none of the recipe's"       # a row may name any file; only the run's own are opened
    try:
        return _drawn(shard, key, os.stat(shard).st_mtime_ns)
    except OSError as error:
        return f"its shard cannot be read from here ({error.strerror})"


def _shards_of(folder: Path) -> tuple[str, ...]:
    try:
        if (folder / RECIPE).stat().st_size > LARGEST_RECIPE_BYTES:
            return ()
        here = read_object(folder / ENVIRONMENT).get("directory")       # patterns are relative to where the run was started
        data: Any = read_yaml((folder / RECIPE).read_text(encoding="utf-8"), RECIPE)["data"]
        mix = [part["shards"] for part in data.get("mix") or []]
        found = [urls for urls in (data.get("train"), data.get("val"), *mix) if urls]
        patterns = [url for urls in found for url in ([urls] if isinstance(urls, str) else urls) if "://" not in url]
        return tuple(expand([os.path.join(here if isinstance(here, str) else "", url) for url in patterns]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecipeError, DataError):
        return ()


@lru_cache(maxsize=512)
def _drawn(shard: str, key: str, version: int) -> bytes | str:
    with open(shard, "rb") as file:
        def read_at(offset: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        form = FORMATS[format_of(shard, read_at(0, HEAD))]
        for member in form.walk(read_at, os.fstat(file.fileno()).st_size, Walk(), 0):
            if isinstance(member, Member):
                name = split_name(member.name)
                if name is not None and name[0] == key and name[1].rpartition(".")[2] in IMAGES:
                    return _encoded(read_at(member.offset, min(member.size, _MOST_BYTES)))
    return "its shard has no image of that name, or it is damaged there"


def _encoded(data: bytes) -> bytes | str:
    try:
        pixels: NDArray[Any] | str = _pixels(data)
    except BadSample as error:
        return f"no picture: {error}" if error.reason == "format" else "no pixels can be made of it"
    if isinstance(pixels, str):
        return pixels
    scale = SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    done, encoded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return encoded.tobytes() if done else "no pixels can be made of it"


def _pixels(data: bytes) -> NDArray[np.uint8] | str:
    """RGB, as much as can be had of what is damaged, by the decoder that training would use or a more patient one; or why not."""
    if data[:2] == b"\xff\xd8":
        data += b"\xff\xd9"         # of one that was cut short the decoder then gives what came before the cut
    header = read_header(data)
    if header.height * header.width > _MOST_PIXELS:
        return f"{header.width} x {header.height} pixels: too large to be decoded here"
    if header.format == "JPEG":
        return pillow.pixels(still(data, header), header, 3)        # unlike jpeg.py it paints over damage
    return decode_whole(data)
