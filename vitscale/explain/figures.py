"""Figures as PNG files: matplotlib does the drawing."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vitscale.errors import UserError
from vitscale.explain.look import View
from vitscale.explain.methods import METHODS
from vitscale.explain.pictures import Picture, as_picture, enlarged, heated, in_colours, visualize_patches
from vitscale.explain.study import Study

_INK, _FAINT, _EDGE = "#22252a", "#6b7280", "#d1d5db"
_DPI = 110


class Files:
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
            taken, number = {"overview", "filters", "positions", "distance", "dream", *self._stems.values()}, 2
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
class Panel:
    """One picture of a figure, and what stands over and under it."""

    picture: Picture
    title: str = ""
    note: str = ""


def panels(rows: Sequence[Sequence[Panel]], title: str, side: float = 1.9) -> Figure:
    """Pictures in rows, each `side` inches wide."""
    across = max(len(row) for row in rows)
    figure = _figure(side * across + 0.3, (side + 0.4) * len(rows) + 0.4, title)
    for down, row in enumerate(rows):
        for place, panel in enumerate(row):
            axes = figure.add_subplot(len(rows), across, down * across + place + 1)
            axes.imshow(panel.picture, interpolation="nearest")
            _bare(axes)
            axes.set_title(_text(panel.title), fontsize=8.5, color=_INK, pad=3)
            axes.set_xlabel(_text(panel.note), fontsize=7.5, color=_FAINT, labelpad=2)
    return figure


def image_sheet(studies: Sequence[Study], names: Sequence[str], methods: Sequence[str], colours: Tensor | None, patch: int) -> Figure:
    """A row for each image: itself, its patches, and what each method says.  colours (images, down, across, 3)."""
    rows = []
    for number, one in enumerate(studies):
        picture = as_picture(one.pixels)
        said = f"{names[one.top[0][0]]}, {one.top[0][1]:.0%}" if one.top else ""
        row = [Panel(enlarged(picture), _short(one.name), said)]
        if "patches" in methods:
            row.append(Panel(visualize_patches(picture, patch), "Patches", f"{one.grid[0]} x {one.grid[1]} places"))
        for method in methods:
            if METHODS[method].heat:
                note = f"for {names[one.classes[0]]}" if METHODS[method].by_class else ""
                row.append(Panel(heated(picture, one.heat(method)), METHODS[method].title, note))
        if colours is not None:
            row.append(Panel(in_colours(picture, colours[number]), METHODS["pca"].title, "equal colours, equal features"))
        if one.similarity is not None:
            middle = (one.grid[0] // 2) * one.grid[1] + one.grid[1] // 2
            row.append(Panel(heated(picture, one.similarity[middle].clamp(min=0).unflatten(0, one.grid), top=1.0),
                             METHODS["similarity"].title, "to the middle place"))
        rows.append(row)
    return panels(rows, "What the model looks at; bright is much, each map against its own maximum")


def attention_sheet(one: Study, names: Sequence[str], layers: Sequence[int], heads: Sequence[int], view: View) -> Figure:
    """What the last tokens look at, weighted as the classifier reads them: a row for each layer, a column for each head, and the mean of them."""
    assert one.attention is not None
    assert one.reading is not None
    said = f" ({names[one.top[0][0]]}, {one.top[0][1]:.0%})" if one.top else ""
    figure = _figure(1.25 * (len(heads) + 1) + 0.5, 1.5 * len(layers) + 0.5, f"{_short(one.name, 40)}{said}: what {view.reader} attends to")
    picture = as_picture(one.pixels)
    for down, layer in enumerate(layers):
        rows = (one.reading @ one.attention[layer])[list(heads)]                # (heads, N)
        for place, row in enumerate([rows.mean(dim=0), *rows]):
            axes = figure.add_subplot(len(layers), len(heads) + 1, down * (len(heads) + 1) + place + 1)
            heat = row[len(view.tokens):].unflatten(0, one.grid)
            axes.imshow(heated(picture, heat), interpolation="nearest")
            _bare(axes)
            axes.set_xlabel(f"up to {heat.max():.1%}", fontsize=6.5, color=_FAINT, labelpad=1)
            if down == 0:
                axes.set_title("mean" if place == 0 else f"head {heads[place - 1]}", fontsize=8, color=_INK, pad=3)
            if place == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=8, color=_INK)
    return figure


def filter_sheet(filters: Tensor, shares: Tensor) -> Figure:
    """filters (n, C, P, P): grey is zero, each stretched by its own largest number; shares of the variance (n,) below them."""
    across = min(len(filters), 7)
    every = [Panel(_signed(one), note=f"{share:.1%}") for one, share in zip(filters, shares, strict=True)]
    rows = [every[first:first + across] for first in range(0, len(every), across)]
    return panels(rows, "Embedding filters: principal components and shares of the variance", side=1.2)


def position_sheet(similarity: Tensor) -> Figure:
    """similarity (down, across, down, across): a small map for each patch, where that patch stands."""
    down, across = similarity.shape[:2]
    step = max(math.ceil(max(down, across) / 14), 1)        # of larger grids every second patch, or third
    rows, columns = range(0, down, step), range(0, across, step)
    cell = 0.55 if max(len(rows), len(columns)) > 7 else 0.85
    figure = _figure(cell * len(columns) + 1.3, cell * len(rows) + 0.5, "Positions: each patch's cosine with all others")
    every = []
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axes = figure.add_subplot(len(rows), len(columns), i * len(columns) + j + 1)
            image = axes.imshow(similarity[row, column].numpy(), vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
            _bare(axes)
            every.append(axes)
    figure.colorbar(image, ax=every, shrink=0.8, pad=0.02).ax.tick_params(labelsize=7)
    return figure


def distance_chart(distance: Tensor, pixels: int, images: int) -> Figure:
    """distance (L, H) in pixels, of images of pixels x pixels."""
    depth, heads = distance.shape
    many = f"{images} {'image' if images == 1 else 'images'}"
    figure = _figure(max(4.8, 0.32 * depth + 2), 3.4, f"How far heads look: {many} of {pixels} x {pixels} pixels")
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


def dream_sheet(dreams: Sequence[tuple[str, Tensor]]) -> Figure:
    """Names of classes and their images (C, S, S)."""
    row = [Panel(enlarged(as_picture(image)), name) for name, image in dreams]
    return panels([row[first:first + 5] for first in range(0, len(row), 5)], "Images made to raise one class's logit")


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_text(title), fontsize=10.5, color=_INK, x=0.01, ha="left")
    return figure


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(_EDGE)


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
