"""Features of images: the pooled ones, or those of any layers by name, written as npz or Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitscale.errors import DataError, RecipeError
from vitscale.evaluate.images import ImageBatch


def known_layers(model: nn.Module) -> list[str]:
    return model.feature_names()        # type: ignore[operator]


def check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """Raises RecipeError listing the layers that there are."""
    unknown = [name for name in layers if name not in known_layers(model)]
    if unknown:
        raise RecipeError(f"no layer {', '.join(repr(name) for name in unknown)}; this model has {', '.join(known_layers(model))}")


@torch.no_grad()
def features(model: nn.Module, images: Tensor, layers: Sequence[str], pool: str = "mean") -> dict[str, Tensor]:
    """images (B, C, S, S) -> features by layer.  pool: `mean` over all but the batch and the last dimension, giving (B, D), or `none`.

    An attention map has no mean that says anything: it stays whole.
    """
    found: dict[str, Tensor] = model.forward_features(images, names=tuple(layers))       # type: ignore[operator]
    return {name: value.flatten(1, -2).mean(dim=1) if pool == "mean" and value.ndim > 2 and not name.endswith(".attention") else value
            for name, value in ((layer, found[layer].float().cpu()) for layer in layers)}


def embed(model: nn.Module, parts: Iterator[ImageBatch], layers: Sequence[str], pool: str = "mean",
          ) -> tuple[list[str], dict[str, NDArray[np.float32]], list[tuple[str, str]]]:
    """(names, features by layer, (name, why) of what could not be read).  Raises DataError if nothing could be."""
    names, bad, rows = [], [], {layer: [] for layer in layers}      # type: ignore[var-annotated]
    for part in parts:
        names += part.names
        bad += part.bad
        if part.names:
            for layer, value in features(model, part.images, layers, pool).items():
                rows[layer].append(value.numpy())
    if not names:
        raise DataError("no image could be read" + "".join(f"\n  {name}: {why}" for name, why in bad[:10]))
    return names, {layer: np.concatenate(values) for layer, values in rows.items()}, bad


def write_features(out: Path, names: Sequence[str], found: dict[str, NDArray[np.float32]]) -> None:
    """FILE.npz: `names` and an array for each layer; FILE.parquet: a column `name` and one of lists for each layer.

    Raises RecipeError for another kind of file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        with open(out, "wb") as file:
            np.savez(file, names=np.array(names), **found)      # type: ignore[arg-type]
        return
    if out.suffix != ".parquet":
        raise RecipeError(f"{out}: wants to be a .npz or .parquet file")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise RecipeError(f"{out}: writing Parquet needs pyarrow; install it with `pip install 'vitscale[parquet]'`") from None
    columns = {layer: pyarrow.array(list(value.reshape(len(value), -1))) for layer, value in found.items()}
    shapes = {f"shape of {layer}": str(list(value.shape[1:])) for layer, value in found.items()}
    parquet.write_table(pyarrow.table({"name": pyarrow.array(list(names)), **columns}).replace_schema_metadata(shapes), out)
