"""A contact sheet: samples of a set as the model sees them, in one picture."""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vitscale.counts import plural
from vitscale.data import augment
from vitscale.data.index import SetIndex
from vitscale.data.labels import LabelRule
from vitscale.data.loader import open_stream
from vitscale.data.reader import ShardReader
from vitscale.data.sources import class_names
from vitscale.data.stats import classes_of
from vitscale.data.survive import StreamWatch, threads
from vitscale.errors import DataError
from vitscale.processes import usable_cores
from vitscale.recipe import Recipe
from vitscale.recipe.load import check_recipe

_CELL = 160             # pixels on a side at least; smaller images are enlarged by whole numbers, larger ones shrunk
_GAP, _STRIP, _TITLE, _MARGIN = 12, 26, 64, 24
_PAPER, _INK, _FAINT, _EDGE = (250, 250, 248), (40, 36, 32), (130, 124, 118), (216, 212, 208)
_FONT = cv2.FONT_HERSHEY_DUPLEX


def write_sheet(
    file: Path, index: SetIndex, recipe: Recipe | None, label: str, class_map: str | None = None, multi_label: bool = False,
) -> None:
    """Write the contact sheet of these shards, as a recipe (None: a plain one of 224 pixels) has its model see them.  Raises DataError."""
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DataError(f"--sheet: {file} should be named .png")
    read = recipe or check_recipe({
        "name": "plain", "model": {"size": "tiny", "image": 224}, "data": {"train": list(index.paths)}, "optim": {"lr": 1e-3},
        "global_batch": 1, "duration": "1 epochs",
    }, "the plain recipe")
    labels = {"label": label, "class_map": class_map, "multi_label": multi_label}
    read = read.model_copy(update={"data": read.data.model_copy(update=labels)})
    folder = Path(index.paths[0]).parent.name
    picture = contact_sheet(read, index, f"{folder}, as {f'the model of {read.name}' if recipe else 'a plain recipe'} sees it")
    done, encoded = cv2.imencode(file.suffix, np.ascontiguousarray(picture[:, :, ::-1]))
    assert done
    try:
        file.write_bytes(encoded.tobytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror})") from error


def contact_sheet(recipe: Recipe, index: SetIndex, title: str, columns: int = 10, rows: int = 6) -> NDArray[np.uint8]:
    """-> (H, W, 3) uint8 RGB.  The samples are those of the first batch of `columns * rows` with one lane for each: spread over the set.

    Crop, flip and whatever else the recipe does to single images are drawn by its seed, as in training; mixing is left out.
    """
    images, ids, weight = _first_samples(recipe, index, columns * rows)
    rows = math.ceil(len(ids) / columns)
    size = images.shape[1]
    cell = size * max(round(_CELL / size), 1) if size < _CELL else min(size, 224)
    width = 2 * _MARGIN + columns * (cell + _GAP) - _GAP
    height = _MARGIN + _TITLE + rows * (cell + _STRIP + _GAP) - _GAP + _MARGIN
    sheet = np.full((height, width, 3), _PAPER, np.uint8)
    _write(sheet, title, _MARGIN, _MARGIN + 18, 0.72, _INK, width - 2 * _MARGIN)
    _write(sheet, _how(recipe, index), _MARGIN, _MARGIN + 44, 0.5, _FAINT, width - 2 * _MARGIN)
    rule = LabelRule.of(recipe.data.label, recipe.data.class_map, recipe.data.multi_label) if recipe.data.label else None
    reader, names = ShardReader(index), tuple((rule and rule.names) or class_names(index))
    first = np.concatenate([[0], np.cumsum(index.counts)])
    for place, one in enumerate(ids.tolist()):
        top = _MARGIN + _TITLE + place // columns * (cell + _STRIP + _GAP)
        left = _MARGIN + place % columns * (cell + _GAP)
        picture = cv2.resize(images[place], (cell, cell), interpolation=cv2.INTER_NEAREST if cell > size else cv2.INTER_AREA)
        sheet[top:top + cell, left:left + cell] = picture.reshape(cell, cell, -1)
        cv2.rectangle(sheet, (left - 1, top - 1), (left + cell, top + cell), _EDGE, 1)
        shard = int(np.searchsorted(first, one, side="right")) - 1
        labels = classes_of(index, reader, shard, one - int(first[shard]), rule) if rule else None
        text = ", ".join(names[label] if 0 <= label < len(names) else f"class {label}" for label in labels or ())
        _write(sheet, text if weight[place] else f"{text} (unreadable)", left, top + cell + 18, 0.46, _INK, cell)
    reader.close()
    return sheet


def _first_samples(recipe: Recipe, index: SetIndex, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """(images (n, S, S, C) as the model sees them but not normalised, ids (n,), weights (n,)) for n <= count samples."""
    alone = recipe.data.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    data = recipe.data.model_copy(update={"mix": (), "augment": alone, "repeats": 1, "prefetch": 1, "max_bad_fraction": 1.0, "group": 1,
                                          "workers": threads(recipe.data.workers or usable_cores())})
    count = min(count, index.num_samples)
    one_batch = recipe.model_copy(update={
        "data": data.model_copy(update={"lanes": count}), "global_batch": count, "model": recipe.model.model_copy(update={"classes": 0}),
    })
    watch = StreamWatch(index.paths, index.key_of)
    with open_stream(one_batch, index, rank=0, world=1, micro_batch=count, crumbs=watch) as stream:
        micro = next(stream).micro[0]
    plain = data.augment
    view = micro.views[0]
    seen = augment.apply(view.images, view.flip, plain.mean, plain.std, ops=view.ops, erase=view.erase)
    centre, spread = (torch.tensor(values) for values in (plain.mean, plain.std))
    if seen.shape[1] == 1:
        centre, spread = centre.mean(0, keepdim=True), spread.mean(0, keepdim=True)
    pixels = ((seen * spread[:, None, None] + centre[:, None, None]) * 255).round().clamp(0, 255).to(torch.uint8)
    real = micro.ids.numpy() >= 0
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()[real], micro.ids.numpy()[real], micro.weight.numpy()[real]


def _how(recipe: Recipe, index: SetIndex) -> str:
    plain = recipe.data.augment
    crop = f"random crops of {plain.scale[0]:g} to {plain.scale[1]:g} of the area" if plain.crop == "random" else "centre crops"
    more = {"RandAugment": plain.rand_augment, "3-Augment": plain.three_augment, "colour jitter": any(plain.color_jitter),
            "erasing": plain.erasing}
    side = recipe.model.image
    return (f"{plural(index.num_samples, 'sample')}; {crop}, flipped with probability {plain.flip:g}, {side} x {side} pixels"
            f"{''.join(f', {name}' for name, on in more.items() if on)}; seed {recipe.seed}")


def _write(sheet: NDArray[np.uint8], text: str, left: int, base: int, scale: float, colour: tuple[int, int, int], width: int) -> None:
    """One line of text, cut to `width` pixels.  The font knows ASCII alone."""
    text = text.encode("ascii", "replace").decode()
    whole = text
    while text and cv2.getTextSize(text, _FONT, scale, 1)[0][0] > width:
        text = text[:-1] if text == whole else text[:-4]
        text = text.rstrip() + "..."
        if len(text) <= 3:
            break
    cv2.putText(sheet, text, (left, base), _FONT, scale, colour, 1, cv2.LINE_AA)
