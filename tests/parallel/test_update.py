"""An update that is clipped and left out on the device, as it is where the host looks at the norm first."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vitscale.parallel import update
from vitscale.parallel.update import clip_and_step

NORMS = (0.1, 3.0, 50.0)        # of the gradient: one is below the limit


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, norm: float, clip: float | None) -> update.Update:
    draw = torch.Generator().manual_seed(number)
    grads = [torch.randn(parameter.shape, generator=draw) for parameter in model.parameters()]
    length = torch.stack([grad.norm() for grad in grads]).norm()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad * (norm / length)
    return clip_and_step(model, optimizer, clip)


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    matrices, biases = ([one for one in model.parameters() if one.ndim == axes] for axes in (2, 1))
    return model, torch.optim.AdamW([{"params": matrices}, {"params": biases, "lr": 0.02}], lr=0.01, fused=True)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for of in optimizer.state_dict()["state"].values() for value in of.values()]
    return [value.clone() for value in (*model.state_dict().values(), *moments)]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_it_is_the_same_update_without_a_look_at_the_norm(monkeypatch: pytest.MonkeyPatch, clip: float | None) -> None:
    ours, theirs = made(), made()
    for number, norm in enumerate(NORMS):
        monkeypatch.setattr(update, "clips_on_device", lambda *_: True)
        on_device = step(*ours, number, norm, clip)
        monkeypatch.setattr(update, "clips_on_device", lambda *_: False)
        on_host = step(*theirs, number, norm, clip)
        assert on_device.grad_norm == on_host.grad_norm == pytest.approx(norm, rel=1e-5)
        assert on_device.applied
        assert on_host.applied
        for one, other in zip(state(*ours), state(*theirs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("before", [0, 2])
def test_a_gradient_that_is_not_finite_changes_no_bit(monkeypatch: pytest.MonkeyPatch, bad: float, before: int) -> None:
    """Neither weights nor moments nor the count of steps; and the next update is as if that one had never been tried."""
    monkeypatch.setattr(update, "clips_on_device", lambda *_: True)
    ours, theirs = made(), made()
    for number in range(before):
        step(*ours, number, 3.0, 1.0)
        step(*theirs, number, 3.0, 1.0)
    weights = copy.deepcopy(ours[0].state_dict())
    refused = step(*ours, 7, bad, 1.0)
    assert not refused.applied
    assert all(torch.equal(value, weights[name]) for name, value in ours[0].state_dict().items())
    assert all(parameter.grad is None for parameter in ours[0].parameters())
    step(*ours, 8, 3.0, 1.0)
    step(*theirs, 8, 3.0, 1.0)
    for one, other in zip(state(*ours), state(*theirs), strict=True):
        assert torch.equal(one, other)
