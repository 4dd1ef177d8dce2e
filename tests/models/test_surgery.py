"""What `init` changes of a trained model for another one: what is said to leave answers as they were does, and all of it is said."""

import pytest
import torch
from torch import Tensor

from vitscale.models import build_model, initialise
from vitscale.models.adapt import adapted
from vitscale.models.surgery import source_of
from vitscale.recipe.schema import FAMILIES, Model, Vit

SMALL = {"width": 24, "depth": 4, "heads": 2, "mlp": 40, "patch": 4, "image": 16, "classes": 5}
SWIN = {"family": "swin", "width": 8, "depths": (2, 4), "heads": (2, 4), "window": 2, "patch": 2, "image": 16, "classes": 5}
CONVNEXT = {"family": "convnext", "widths": (8, 16), "depths": (2, 3), "image": 16, "classes": 5, "layer_scale": 0.1}


def trained(section: Model) -> torch.nn.Module:
    model = build_model(section).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def carried(before: Model, after: Model) -> tuple[torch.nn.Module, torch.nn.Module, list[str]]:
    """(a trained model of the one section, a model of the other that starts from it, what was said)."""
    old, new = trained(before), build_model(after).eval().requires_grad_(False)
    initialise(new, 0)
    weights, notes = adapted(dict(old.named_parameters()), new, before)
    wanted = {name: tuple(value.shape) for name, value in new.named_parameters()}
    assert {name: tuple(value.shape) for name, value in weights.items()} == {name: wanted[name] for name in weights}
    report = new.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("head") for name in report.missing_keys), report
    return old, new, notes


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("before", "after", "said"), [
    ({}, {"layer_scale": 1e-5}, "begins at 1"), ({"layer_scale": 0.1}, {}, "goes into the layers"),
    ({"key_bias": False}, {}, "begins at 0"), ({}, {"key_bias": False}, "left behind"),
    ({"key_bias": False, "position": "rotary"}, {"position": "rotary"}, "begins at 0"),
], ids=str)
def test_answers_stay_what_they_were(before: dict, after: dict, said: str) -> None:
    old, new, notes = carried(Vit(**SMALL, **before), Vit(**SMALL, **after))
    torch.testing.assert_close(new(images()), old(images()), rtol=1e-4, atol=1e-4)
    assert said in " ".join(notes)


def test_a_distilled_model_goes_on_as_a_plain_one_and_back() -> None:
    old, new, notes = carried(FAMILIES["deit"](family="deit", **SMALL), Vit(**SMALL))
    assert "the distillation token and its head are left behind" in notes
    assert torch.equal(new.get_parameter("cls_token") + new.get_parameter("pos_embed")[:, :1],
                       old.get_parameter("cls_token") + old.get_parameter("pos_embed")[:, :1])
    assert torch.equal(new.get_parameter("pos_embed")[:, 1:], old.get_parameter("pos_embed")[:, 2:])
    old, new, notes = carried(Vit(**SMALL), FAMILIES["deit"](family="deit", **SMALL))
    assert "the distillation token begins as the class token" in notes
    both = new.forward_features(images(), names=["norm"])["norm"][:, :2]
    torch.testing.assert_close(both[:, 0], both[:, 1])


@pytest.mark.parametrize(("had", "has"), [(0, 3), (2, 5), (4, 1), (3, 0)])
def test_registers_come_and_go(had: int, has: int) -> None:
    old, new, notes = carried(Vit(**SMALL, registers=had), Vit(**SMALL, registers=has))
    assert "register" in " ".join(notes)
    if min(had, has):
        assert torch.equal(new.get_parameter("reg_token")[:, :min(had, has)], old.get_parameter("reg_token")[:, :min(had, has)])
    if has > had:
        assert new.get_parameter("reg_token")[:, had:].std() > 0


@pytest.mark.parametrize(("family", "small", "key", "before", "after"), [
    ("vit", SMALL, "depth", 4, 8), ("vit", SMALL, "depth", 4, 3), ("vit", SMALL, "depth", 4, 1), ("swin", SWIN, "depths", (2, 4), (2, 6)),
    ("swin", SWIN, "depths", (2, 4), (2, 2)), ("convnext", CONVNEXT, "depths", (2, 3), (3, 2)),
])
def test_depth_changes_by_stacking_and_dropping(family: str, small: dict, key: str, before: object, after: object) -> None:
    old, new, notes = carried(*(FAMILIES[family](**small | {"family": family, key: depth}) for depth in (before, after)))
    assert sum("which begin as" in note for note in notes) == (2 if family == "convnext" else 1)
    ours, theirs = new.state_dict(), old.state_dict()
    if (before, after) == (4, 8):       # stacked: the second half is the first once more
        assert all(torch.equal(ours[name], theirs[f"blocks.{int(name.split('.')[1]) % 4}.{name.split('.', 2)[2]}"])
                   for name in ours if name.startswith("blocks."))
    assert torch.isfinite(new(images())).all()


def test_blocks_are_taken_evenly_and_shifted_windows_stay_shifted() -> None:
    assert [source_of(block, 6, 12) for block in range(6)] == [0, 2, 4, 7, 9, 11]
    assert [source_of(block, 7, 3) for block in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    for now, before in ((2, 6), (6, 18), (18, 6), (4, 6)):
        sources = [source_of(block, now, before, pairs=True) for block in range(now)]
        assert [source % 2 for source in sources] == [block % 2 for block in range(now)]
        assert max(sources) < before
