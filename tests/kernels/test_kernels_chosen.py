"""Which kernels a run takes, and what it says where it takes none."""

import importlib.util
import logging

import pytest
import torch
from backbones import BACKBONES

from vitscale.kernels import check, parts
from vitscale.kernels.parts import PARTS, Fusing, turn_on_, why_none
from vitscale.models import build_model
from vitscale.parallel import kernels
from vitscale.parallel.engine import prepared
from vitscale.parallel.world import World
from vitscale.recipe import Parallel

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)


def alone(device: torch.device) -> World:
    return World(0, 1, 0, 1, device, None)


def on_a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], installed: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)


def test_a_cpu_has_the_formulas_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vitscale")
    model = prepared(lambda: build_model(BACKBONES["vit"][0]), Parallel(), alone(CPU))
    assert caplog.messages == ["kernels: torch's own (they are for GPUs)"]
    assert {module.parts for module in model.modules() if isinstance(module, Fusing)} == {frozenset()}


def test_a_card_has_them_unless_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_card(monkeypatch, (9, 0))
    assert why_none(CARD) is None
    on_a_card(monkeypatch, (7, 5))
    assert why_none(CARD) == "Tesla T4 is older than they want (compute capability 8.0)"
    on_a_card(monkeypatch, (9, 0), installed=False)
    assert why_none(CARD) == "Triton is not installed"
    told = kernels.chosen(Parallel(), alone(CARD))
    assert (told.names, told.why, told.failed) == ("torch's own", "Triton is not installed", False)


def test_a_kernel_that_computes_wrong_is_left_out_on_every_rank(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Another rank's is off, and this one's do not run at all on such rows; what is right is used."""
    class Two(World):
        def gather(self, value: object) -> list[object]:
            return [value, (None, {"norm": "is off by 3.0e-01 on rows of 16, where 1e-05 is rounding"})]

    on_a_card(monkeypatch, (9, 0))
    monkeypatch.setattr(kernels, "wrong", lambda *_: {"pack": "failed on rows of 16: OutOfResources: shared memory"})
    caplog.set_level(logging.INFO, "vitscale")
    model = build_model(BACKBONES["vit"][0])
    kernels.turn_on_chosen_(model, Parallel(), Two(0, 2, 0, 2, CARD, None))
    assert caplog.messages == [
        "kernels: gelu, bias (pack is left to torch: its kernel on rank 0 failed on rows of 16: OutOfResources: shared memory; "
        "norm is left to torch: its kernel on rank 1 is off by 3.0e-01 on rows of 16, where 1e-05 is rounding)"]
    assert caplog.records[0].levelname == "WARNING"
    assert {module.parts for module in model.modules() if isinstance(module, Fusing)} == {frozenset({"gelu", "bias"})}


def test_every_block_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for backbone, (section, _) in BACKBONES.items():
        with torch.device("meta"):
            model = build_model(section)
        turn_on_(model, PARTS)
        assert all(isinstance(unit, Fusing) and unit.parts == frozenset(PARTS) for unit in model.units()), backbone


def test_what_a_kernel_is_not_for_takes_torchs_operations() -> None:
    """A model whose kernels are on, in evaluation on a CPU, or exported."""
    model = build_model(BACKBONES["vit"][0])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    images = torch.randn(2, 3, 16, 16)
    before = model(images)
    turn_on_(model, PARTS)
    assert torch.equal(model(images), before)
    assert not parts.takes(torch.zeros(2, 3))


def test_a_kernel_that_answers_with_no_number_is_wrong() -> None:
    """The check itself, of a kernel that leaves a result, or a gradient, unwritten."""
    def half(given: list[torch.Tensor]) -> list[torch.Tensor]:
        return [given[0] * torch.tensor([1.0] * 3 + [torch.nan])]

    def right(given: list[torch.Tensor]) -> list[torch.Tensor]:
        return [given[0] * 1]

    def steep(given: list[torch.Tensor]) -> list[torch.Tensor]:
        return [given[0].detach() + 1.1 * (given[0] - given[0].detach())]

    found = [check.error(kernel, right, [(2, 4)], CPU, torch.float32) for kernel in (right, half, steep)]
    assert found[0] == 0
    assert not found[1] <= 1e-5
    assert found[2] == pytest.approx(0.1)
