"""Figures as PNG files: matplotlib does the drawing."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vitscale.explain.pictures import HEAT, Picture, enlarged, heated, write

_INK, _FAINT = "#22252a", "#6b7280"
_DPI = 110


@dataclass(frozen=True)
class Panel:
    """One picture of a figure, and what stands over it."""

    title: str
    picture: Picture
    note: str = ""


def save(figure: Figure, file: Path) -> None:
    """As PNG.  Raises UserError for a place that cannot be written."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    write(file, data)


def _plain(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#d1d5db")


def _text(text: str) -> str:
    """As it stands: matplotlib would take what is between two dollars for a formula."""
    return text.replace("$", r"\$")


def panels(rows: Sequence[Sequence[Panel]], title: str, side: float = 1.9) -> Figure:
    """Pictures in rows; over the first row, and wherever a title changes, stand the titles."""
    across = max(len(row) for row in rows)
    figure = Figure(figsize=(side * across + 0.3, (side + 0.42) * len(rows) + 0.5), layout="constrained")
    figure.suptitle(_text(title), fontsize=11, color=_INK, x=0.01, ha="left")
    for down, row in enumerate(rows):
        for place, panel in enumerate(row):
            axes = figure.add_subplot(len(rows), across, down * across + place + 1)
            axes.imshow(panel.picture, interpolation="nearest")
            _plain(axes)
            axes.set_title(_text(panel.title), fontsize=8.5, color=_INK, pad=3)
            axes.set_xlabel(_text(panel.note), fontsize=7.5, color=_FAINT, labelpad=2)
    return figure


def attention_grid(picture: Picture, maps: Tensor, reading: Tensor, before: int, grid: tuple[int, int], layers: Sequence[int],
                   heads: Sequence[int], title: str) -> Figure:
    """What the classifier's token looks at: a row for each layer, a column for each head, and their mean.

    maps (L, H, N, N), reading (N,).  Each map is as bright as its own maximum, which stands below it.
    """
    figure = Figure(figsize=(1.25 * (len(heads) + 1) + 0.5, 1.5 * len(layers) + 0.7), layout="constrained")
    figure.suptitle(_text(title), fontsize=10.5, color=_INK, x=0.01, ha="left")
    for down, layer in enumerate(layers):
        rows = reading @ maps[layer]                                # (H, N)
        for place, row in enumerate([rows[list(heads)].mean(dim=0), *rows[list(heads)]]):
            axes = figure.add_subplot(len(layers), len(heads) + 1, down * (len(heads) + 1) + place + 1)
            heat = row[before:].unflatten(0, grid)
            axes.imshow(heated(picture, heat), interpolation="nearest")
            _plain(axes)
            axes.set_xlabel(f"to {heat.max():.1%}", fontsize=6.5, color=_FAINT, labelpad=1)
            if down == 0:
                axes.set_title("mean" if place == 0 else f"head {heads[place - 1]}", fontsize=8, color=_INK, pad=3)
            if place == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=8, color=_INK)
    return figure


def filter_sheet(filters: Tensor, shares: Tensor) -> Figure:
    """filters (n, C, P, P), each stretched by its own largest number: grey is zero."""
    across = min(len(filters), 7)
    rows = [[Panel("" if down or place else "", _signed(filters[down * across + place]), f"{shares[down * across + place]:.1%}")
             for place in range(min(across, len(filters) - down * across))] for down in range(math.ceil(len(filters) / across))]
    return panels(rows, f"Embedding filters: the first {len(filters)} principal components, their shares of the variance", side=1.2)


def _signed(values: Tensor) -> Picture:
    """(C, h, w) of both signs -> a picture in which 0 is grey."""
    scaled = (values / values.abs().max().clamp(min=1e-12) + 1) / 2
    array = (scaled.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return enlarged(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array, 128)


def position_sheet(similarity: Tensor) -> Figure:
    """similarity (down, across, down, across): a small map for each patch, where that patch stands."""
    down, across = similarity.shape[:2]
    step = max(math.ceil(max(down, across) / 14), 1)        # larger grids: every second patch, or third
    rows, columns = range(0, down, step), range(0, across, step)
    cell = 0.55 if max(len(rows), len(columns)) > 7 else 0.85
    figure = Figure(figsize=(cell * len(columns) + 1.3, cell * len(rows) + 0.6), layout="constrained")
    figure.suptitle("Positions: cosine with all others, for the patch in that place", fontsize=10, color=_INK, x=0.01, ha="left")
    every = []
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axes = figure.add_subplot(len(rows), len(columns), i * len(columns) + j + 1)
            image = axes.imshow(similarity[row, column].numpy(), vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
            _plain(axes)
            every.append(axes)
    bar = figure.colorbar(image, ax=every, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    return figure


def distance_chart(distance: Tensor, pixels: int, images: int) -> Figure:
    """distance (L, H) in pixels of an image of `pixels`."""
    depth, heads = distance.shape
    figure = Figure(figsize=(max(4.5, 0.32 * depth + 2), 3.4), layout="constrained")
    axes = figure.add_subplot()
    for head in range(heads):
        axes.scatter(range(depth), distance[:, head], s=22, alpha=0.75, color="#2563eb", linewidths=0, label="a head" if head == 0 else None)
    axes.plot(range(depth), distance.mean(dim=1), color="#d97706", linewidth=1.5, label="mean of the heads")
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("mean attention distance (pixels)", fontsize=9)
    axes.set_xticks(range(0, depth, max(depth // 12, 1)))
    axes.set_ylim(0, max(float(distance.max()) * 1.15, 1e-6))
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(f"How far heads look, over {images} {'image' if images == 1 else 'images'} of {pixels} x {pixels} pixels", fontsize=10,
                   loc="left", color=_INK)
    return figure


def colour_bar_note() -> str:
    return f"colours: {HEAT}, dark is little"
