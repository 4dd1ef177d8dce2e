"""Figures as PNG files: matplotlib does the drawing."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vitscale.counts import plural
from vitscale.errors import UserError
from vitscale.explain.look import View
from vitscale.explain.methods import METHODS
from vitscale.explain.pictures import Picture, as_picture, enlarged, heated, in_colours, visualize_patches
from vitscale.explain.study import Study

_INK, _FAINT, _EDGE = "#22252a", "#6b7280", "#d1d5db"
_DPI = 110


class FigureFolder:
    """A folder that figures go to, each under a name of its own.  Raises UserError for one that cannot be made or written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, list[str]()
        self._stems: dict[str, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out: {folder} cannot be made ({error.strerror})") from None

    def stem(self, name: str) -> str:
        """What an image's files are called: its name without what is no plain letter, and with a number where another has it already."""
        if name not in self._stems:
            plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem).strip(".-")[:80] or "image"
            taken, number = {"overview", "filters", "positions", "distance", *self._stems.values()}, 2
            found = plain
            while found in taken:
                found, number = f"{plain}-{number}", number + 1
            self._stems[name] = found
        return self._stems[name]

    def save(self, figure: Figure, name: str) -> None:
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
        self.write(data.getvalue(), name)

    def write(self, data: bytes | str, name: str) -> None:
        try:
            (self.folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
        except OSError as error:
            raise UserError(f"{self.folder / name}: cannot be written ({error.strerror})") from None
        self.written.append(name)


@dataclass(frozen=True)
class FigurePanel:
    """One picture of a figure, and what stands over and under it."""

    picture: Picture
    title: str = ""
    note: str = ""


def panels(rows: Sequence[Sequence[FigurePanel]], title: str, side: float = 1.9, left: Sequence[str] = ()) -> Figure:
    """Pictures in rows, each `side` inches wide, under their titles where these differ from the row above; `left`: of each row."""
    across, gap, over = max(len(row) for row in rows), 0.1, 0.22
    under = 0.19 if any(panel.note for row in rows for panel in row) else 0.0
    margin, top, first = 0.1, 0.4, 0.55 if left else 0.0
    titles = [[panel.title for panel in row] for row in rows]
    titled = [any(its) and (not down or its != titles[down - 1]) for down, its in enumerate(titles)]
    height = top + sum(side + under + gap + over * one for one in titled)
    width = max(2 * margin + first + across * (side + gap) - gap, 2 * margin + 0.082 * len(title))
    figure, axes = _canvas(width, height, title)
    base = top
    for down, row in enumerate(rows):
        base += over * titled[down]
        if left:
            axes.text(margin + first - 0.1, base + side / 2, _text(left[down]), fontsize=8, color=_INK, ha="right", va="center")
        for place, panel in enumerate(row):
            start = margin + first + place * (side + gap)
            axes.imshow(panel.picture, extent=(start, start + side, base + side, base), interpolation="nearest", aspect="equal")
            axes.add_patch(Rectangle((start, base), side, side, fill=False, edgecolor=_EDGE, linewidth=0.7))
            if titled[down]:
                axes.text(start + side / 2, base - 0.05, _text(panel.title), fontsize=8.5, color=_INK, ha="center", va="bottom")
            axes.text(start + side / 2, base + side + 0.04, _text(panel.note), fontsize=7 if side > 1.5 else 6.5, color=_FAINT, ha="center",
                      va="top")
        base += side + under + gap
    axes.set_xlim(0, width)             # imshow has moved them
    axes.set_ylim(height, 0)
    return figure


def _canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure whose only axes count inches from the upper left corner: an axes for each picture takes ten times as long."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0.1, 0.1, _text(title), fontsize=10, color=_INK, va="top")
    return figure, axes


def image_sheet(studies: Sequence[Study], names: Sequence[str], methods: Sequence[str], colours: Tensor | None, patch: int) -> Figure:
    """A row for each image: itself, its patches, and what each method says.  colours (images, down, across, 3)."""
    rows = []
    for number, one in enumerate(studies):
        picture = as_picture(one.pixels)
        said = f"{names[one.top[0][0]]}, {one.top[0][1]:.0%}" if one.top else ""
        row = [FigurePanel(enlarged(picture), _short(one.name), said)]
        if "patches" in methods:
            row.append(FigurePanel(visualize_patches(picture, patch), "Patches", f"{one.grid[0]} x {one.grid[1]} places"))
        for method in methods:
            if METHODS[method].heat:
                heat = one.heat(method)
                note = f"for {names[one.classes[0]]}" if METHODS[method].by_class else ""
                row.append(FigurePanel(heated(picture, heat), METHODS[method].title, note if heat.max() > 0 else f"{note}: nothing"))
        if colours is not None:
            row.append(FigurePanel(in_colours(picture, colours[number]), METHODS["pca"].title, "equal colours, equal features"))
        if one.similarity is not None:
            middle = (one.grid[0] // 2) * one.grid[1] + one.grid[1] // 2
            row.append(FigurePanel(heated(picture, one.similarity[middle].clamp(min=0).unflatten(0, one.grid), top=1.0),
                             METHODS["similarity"].title, "to the middle place"))
        rows.append(row)
    return panels(rows, "What the model looks at; bright is much, each map against its own maximum")


def attention_sheet(one: Study, names: Sequence[str], layers: Sequence[int], heads: Sequence[int], view: View) -> Figure:
    """What the last tokens look at, weighted as the classifier reads them: a row for each layer, a column for each head, and their mean."""
    assert one.attention is not None
    assert one.reading is not None
    picture, rows = as_picture(one.pixels), []
    for layer in layers:
        by_head = (one.reading @ one.attention[layer])[list(heads), len(view.tokens):].unflatten(1, one.grid)
        every = {"mean": by_head.mean(dim=0)} | {f"head {head}": heat for head, heat in zip(heads, by_head, strict=True)}
        rows.append([FigurePanel(heated(picture, heat), name, f"up to {heat.max():.1%}") for name, heat in every.items()])
    said = f" ({names[one.top[0][0]]}, {one.top[0][1]:.0%})" if one.top else ""
    return panels(rows, f"{_short(one.name, 40)}{said}: what {view.reader} attends to", 1.2, [f"layer {layer}" for layer in layers])


def filter_sheet(filters: Tensor, shares: Tensor) -> Figure:
    """filters (n, C, P, P): grey is zero, each stretched by its own largest number; shares of the variance (n,) below them."""
    across = min(len(filters), 7)
    every = [FigurePanel(_signed(one), note=f"{share:.1%}") for one, share in zip(filters, shares, strict=True)]
    rows = [every[first:first + across] for first in range(0, len(every), across)]
    return panels(rows, "Embedding filters: principal components and shares of the variance", side=1.1)


def position_sheet(similarity: Tensor) -> Figure:
    """similarity (down, across, down, across): a small map for each patch, where that patch stands."""
    down, across = similarity.shape[:2]
    step = max(math.ceil(max(down, across) / 14), 1)        # of larger grids every second patch, or third
    colours = colormaps["viridis"]
    rows = [[FigurePanel((colours((similarity[row, column].numpy() + 1) / 2)[:, :, :3] * 255).round().astype(np.uint8))
             for column in range(0, across, step)] for row in range(0, down, step)]
    figure = panels(rows, "Positions: each patch's cosine with all others", 0.45 if len(rows) > 7 else 0.9)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.5)
    figure.axes[0].set_position((0, 0.5 / (height + 0.5), 1, height / (height + 0.5)))
    bar = figure.add_axes((0.1, 0.28 / (height + 0.5), 0.8, 0.12 / (height + 0.5)))
    figure.colorbar(ScalarMappable(Normalize(-1, 1), colours), cax=bar, orientation="horizontal").ax.tick_params(labelsize=7)
    return figure


def distance_chart(distance: Tensor, pixels: int, images: int) -> Figure:
    """distance (L, H) in pixels, of images of pixels x pixels."""
    depth, heads = distance.shape
    many = plural(images, "image")
    figure = Figure(figsize=(max(4.8, 0.32 * depth + 2), 3.4), layout="constrained")
    figure.suptitle(f"How far heads look: {many} of {pixels} x {pixels} pixels", fontsize=10, color=_INK, x=0.01, ha="left")
    axes = figure.add_subplot()
    for head in range(heads):
        axes.scatter(range(depth), distance[:, head], s=22, alpha=0.75, color="#2563eb", linewidths=0, label=None if head else "a head")
    axes.plot(range(depth), distance.mean(dim=1), color="#d97706", linewidth=1.5, label="mean of the heads")
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("mean attention distance (pixels)", fontsize=9)
    axes.set_xticks(range(0, depth, max(depth // 12, 1)))
    axes.set_ylim(0, float(distance.max()) * 1.2)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _text(text: str) -> str:
    """As it stands: what lies between two dollars would be set as a formula."""
    return text.replace("$", r"\$")


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"...{name[3 - most:]}"


def _signed(values: Tensor) -> Picture:
    """(C, h, w) of both signs -> a picture in which 0 is grey."""
    scaled = (values / values.abs().max().clamp(min=1e-12) + 1) / 2
    array = (scaled.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return enlarged(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array, 128)
