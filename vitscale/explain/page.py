"""One HTML file that needs nothing else: choose an image, a method, a layer and a head, and point at a patch to see what it attends to."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from torch import Tensor

from vitscale.explain.look import View
from vitscale.explain.methods import METHODS
from vitscale.explain.pictures import HEAT, as_picture, png
from vitscale.explain.study import Study
from vitscale.pages.document import as_json, asset, one_file

# How the page draws a method: `attention` by layer, head and token; `matrix` by token; `similarity` by place; `colours`; else `heat`.
_KINDS = {"attention": "attention", "rollout": "matrix", "similarity": "similarity", "pca": "colours"}


def entry(one: Study, names: Sequence[str], methods: Sequence[str]) -> dict[str, Any]:
    """What the page holds of one image."""
    maps: dict[str, Any] = {
        method: {"" if which is None else str(which): _packed(heat) for which, heat in heats.items()}
        for method, heats in one.heats.items()}
    if one.rollout is not None:
        maps["rollout"] = _packed_rows(one.rollout)
    if one.similarity is not None:
        maps["similarity"] = _packed_rows(one.similarity)
    return {
        "name": one.name, "picture": f"data:image/png;base64,{_base64(png(as_picture(one.pixels)))}", "maps": maps,
        "top": [[names[which], share] for which, share in one.top], "classes": [[which, names[which]] for which in one.classes],
        "reading": None if one.reading is None else one.reading.tolist(),
        "attention": _packed_rows(one.attention) if one.attention is not None and "attention" in methods else None,
    }


def size_of(made: Mapping[str, Any]) -> int:
    """Bytes that entry() takes in the page."""
    return len(as_json(made))


def with_colours(made: dict[str, Any], colours: Tensor) -> dict[str, Any]:
    """What entry() made, and the features' colours (down, across, 3), 0 to 1, which all images together decide."""
    return made | {"maps": made["maps"] | {"pca": _base64((colours * 255).round().byte().numpy().tobytes())}}


def _packed_rows(matrix: Tensor) -> dict[str, str]:
    """(..., N, N), not negative -> each row as 0..255 of its own maximum, and those maxima; in base64.  A quarter of what fp32 takes."""
    rows = matrix.clamp(min=0).reshape(-1, matrix.shape[-1]).numpy().astype(np.float32)
    tops = rows.max(axis=1)
    scaled = np.rint(rows / np.maximum(tops, 1e-30)[:, None] * 255).astype(np.uint8)
    return {"rows": _base64(scaled.tobytes()), "tops": _base64(tops.astype("<f4").tobytes())}


def _packed(values: Tensor) -> str:
    """Numbers as fp32 in base64."""
    return _base64(values.numpy().astype("<f4").tobytes())


def page(title: str, about: str, view: View, grid: tuple[int, int], methods: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> str:
    """The page's text; entries: of entry(), at least one.

    What is said of images goes into the data block, and from there into the page as text, never as markup.
    """
    shown = [{"id": name, "title": METHODS[name].title, "about": METHODS[name].about, "byClass": METHODS[name].by_class,
              "kind": _KINDS.get(name, "heat")} for name in methods if name in _KINDS or METHODS[name].heat]
    held = {
        "title": title, "told": about, "grid": grid, "before": len(view.tokens), "tokens": list(view.tokens), "layers": view.layers,
        "heads": view.heads,
        "methods": shown, "images": list(entries), "reader": view.reader[0].upper() + view.reader[1:],
        "colours": (colormaps[HEAT](np.arange(256))[:, :3] * 255).round().astype(int).tolist(),
    }
    return one_file(title, held, sheets=("explain/page.css",), scripts=("explain/page.js",), body=asset("explain/page.html"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
