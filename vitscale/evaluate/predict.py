"""What a model says of images: the likeliest classes, as rows for a table, JSON or CSV."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import torch

from vitscale.checkpoint.load import Loaded
from vitscale.errors import RecipeError
from vitscale.evaluate.images import Several, batches

Row = dict[str, Any]        # {"image", "classes": [(name, probability), ...]} or {"image", "error"}


@torch.no_grad()
def predict(loaded: Loaded, source: Several, top: int = 5, batch: int = 64) -> Iterator[Row]:
    """A row for each image, in order; one that cannot be read comes after its batch and has an `error` in place of `classes`.

    Raises RecipeError for a model without a head.
    """
    if not loaded.class_names:
        raise RecipeError(f"{loaded.source}: this model tells no classes apart, since it was trained without labels; vitscale embed gives "
                          "its features")
    device = next(loaded.model.parameters()).device
    for part in batches(source, loaded.transform, batch, device):
        if part.names:
            values, classes = loaded.probabilities(part.images).cpu().topk(min(top, len(loaded.class_names)), dim=-1)
            for name, shares, numbers in zip(part.names, values.tolist(), classes.tolist(), strict=True):
                yield {"image": name, "classes": [(loaded.class_names[number], share)
                                                  for number, share in zip(numbers, shares, strict=True)]}
        for name, why in part.bad:
            yield {"image": name, "error": why}


def as_json(rows: list[Row]) -> str:
    return json.dumps([row if "error" in row else {"image": row["image"], "classes": [
        {"class": name, "probability": round(share, 6)} for name, share in row["classes"]]} for row in rows], indent=1)


def as_csv(rows: list[Row]) -> str:
    """image, rank, class, probability; images that could not be read are left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for row in rows:
        for rank, (name, share) in enumerate(row.get("classes", ()), 1):
            writer.writerow([row["image"], rank, name, f"{share:.6f}"])
    return text.getvalue()


def show(rows: list[Row]) -> None:
    """A table on the terminal; nothing where no image could be read."""
    from vitscale.terminal import console, table

    told = [(row["image"], *row["classes"]) for row in rows if "error" not in row]
    if told:
        console().print(table(["image", "class", "", "or"], [
        (image, name, f"{share:.1%}", ", ".join(f"{other} {less:.1%}" for other, less in others[:2]))
        for image, (name, share), *others in told], words=(0, 1, 3), fold=True))
