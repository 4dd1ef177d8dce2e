"""Whatever a model section says, timm's and transformers' folders of it give the same answers, or the keys that have no place are named.

VITSCALE_GRID_SEED=N repeats the sections of a seed, which is printed.  timm's folders are read by ourselves here; timm itself reads what
tests/export/interchange.py has."""

import datetime
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sections import VALUES, sampled

from vitscale.checkpoint.load import Loaded, load
from vitscale.data.transform import Transform
from vitscale.errors import RecipeError
from vitscale.export.folder import write_timm, write_transformers
from vitscale.export.verify import check_own, check_peer
from vitscale.models import build_model
from vitscale.recipe.schema import Model

pytest.importorskip("transformers")
SEED = int(os.environ.get("VITSCALE_GRID_SEED", datetime.datetime.now(datetime.UTC).date().toordinal()))
COUNT = 12      # of each family, for each library
# those of a Vision Transformer that neither library has any class for go to their defaults four times in five
_NOWHERE = {"attention": "full", "patch_embed": "patch", "head_hidden": None, "class_tokens": 1, "parallel": False}


def likely(section: Model, draw: random.Random) -> Model:
    if section.family == "convnext":
        return section.model_copy(update={"widths": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "image": 32})
    return section.model_copy(update=_NOWHERE) if section.family == "vit" and draw.random() < 0.8 else section


@torch.no_grad()
def shaken(section: Model) -> Loaded:
    model = build_model(section).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    names = tuple(map(str, range(section.classes)))
    return Loaded(model, Transform(section.image, section.channels, 0.9, (0.5,) * 3, (0.5,) * 3), names, section, None, Path("nowhere"))


def hold(write: Callable[[Loaded, Path], str], library: str, count: int, folder: Path) -> None:
    print(f"VITSCALE_GRID_SEED={SEED}")
    written, refusals = 0, list[str]()
    for family in VALUES:
        for number, one in enumerate(sampled(family, count, SEED)):
            loaded, out = shaken(likely(one, random.Random(f"{SEED} {number}"))), folder / f"{family}-{number}"
            try:
                write(loaded, out)
            except RecipeError as refused:
                refusals.append(str(refused))
                continue
            written += 1
            said = loaded.section.model_dump(exclude_defaults=True)
            assert check_own(loaded, out) <= 1e-5, said
            if library == "transformers":
                assert check_peer(loaded, out, library) <= 1e-5, said
            assert load(out).section.classes == loaded.section.classes
    assert written >= count / 2
    assert all("  model." in words and "--format safetensors" in words for words in refusals)


def test_some_of_timm(tmp_path: Path) -> None:
    hold(write_timm, "timm", COUNT, tmp_path)


def test_some_of_transformers(tmp_path: Path) -> None:
    hold(write_transformers, "transformers", COUNT, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize(("write", "library"), [(write_timm, "timm"), (write_transformers, "transformers")], ids=["timm", "transformers"])
def test_many(write: Callable[[Loaded, Path], str], library: str, tmp_path: Path) -> None:
    hold(write, library, 300, tmp_path)
