"""A configuration with any of its values changed under the same weights: our answers are transformers' own, or the change is refused."""

import datetime
import json
import random
from pathlib import Path
from typing import Any

import interchange
import pytest
import torch

from vitscale.checkpoint.load import load
from vitscale.errors import UserError

transformers = pytest.importorskip("transformers")
KINDS = ("vit", "dinov2_with_registers", "beit", "siglip_vision_model", "swin", "convnextv2", "dinov3_vit", "clip_vision_model")
GONE = object()


def others(value: Any) -> list[Any]:
    """What may stand in a value's place: of its kind, of another, or nothing."""
    found: list[Any] = [GONE]
    if isinstance(value, bool):
        return [*found, not value]
    if isinstance(value, (int, float)):
        return [*found, value * 2, value + 1, None]
    if isinstance(value, str):
        return [*found, "relu", "quick_gelu", "mean"]
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [*found, value[:-1], [one * 2 for one in value]]
    return [*found, 1, 0.1, True] if value is None else found


@torch.no_grad()
def differences(kind: str, count: int, seed: int, folder: Path) -> tuple[int, list[str]]:
    """(how many were read, with what theirs answers too; what is wrong)."""
    case = next(one for one in interchange.transformers_cases(transformers) if one.options == {"model_type": kind})
    model, _ = interchange.transformers_model(transformers, case)
    interchange.shaken(model.eval(), torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    sound, wrong, read = json.loads((folder / "config.json").read_text()), [], 0
    changes = [(key, new) for key, value in sound.items() if key not in ("architectures", "model_type") for new in others(value)]
    for key, new in random.Random(seed).sample(changes, min(count, len(changes))):
        config = {name: value for name, value in sound.items() if name != key} | ({} if new is GONE else {key: new})
        (folder / "config.json").write_text(json.dumps(config))
        try:
            ours = load(folder)
        except UserError:
            continue
        images = torch.randn(2, ours.section.channels, *(2 * [ours.section.image]), generator=torch.Generator().manual_seed(7))
        try:
            theirs = interchange.transformers_answers(getattr(transformers, case.name).from_pretrained(folder).eval(), images)
        except Exception:       # what it cannot build itself it has not written
            continue
        found, read = ours.model(images), read + 1
        errors = [float((found - one).abs().max() / one.std()) for one in theirs if one.shape == found.shape]
        if not min(errors, default=float("nan")) <= interchange.EQUAL * 2:
            wrong.append(f"{kind}: {key} {sound[key]!r} -> {'left out' if new is GONE else repr(new)}: {errors}")
    return read, wrong


def test_some_changes_of_the_day(tmp_path: Path) -> None:
    seed = datetime.date.today().toordinal()
    print(f"seed {seed}")
    for number, kind in enumerate(random.Random(seed).sample(KINDS, 3)):
        read, wrong = differences(kind, 12, seed, tmp_path / str(number))
        assert read, kind
        assert not wrong


@pytest.mark.all
@pytest.mark.parametrize("kind", KINDS)
def test_every_change(kind: str, tmp_path: Path) -> None:
    read, wrong = differences(kind, 1000, 0, tmp_path)
    assert read > 10
    assert not wrong
