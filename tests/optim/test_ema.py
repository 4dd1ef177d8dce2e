"""Averaged weights: the closed form, exact swapping, and sharded parameters."""

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vitscale.optim.ema import WeightAverage
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import Parallel


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False))


def move(model: nn.Module, step: int) -> None:
    """Weights that are known at each step: the first ones plus the step's number."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0 if step else 0.0)


def test_the_average_follows_its_closed_form():
    model, decay, steps = toy(), 0.9, 20
    first = [parameter.detach().clone() for parameter in model.parameters()]
    ema = WeightAverage(model, decay)
    for step in range(1, steps + 1):
        move(model, step)
        ema.update()
    # a_n = w_0 + sum over k of (1 - d) d^(n-k) k, which is n - d (1 - d^n) / (1 - d)
    expected = steps - decay * (1 - decay**steps) / (1 - decay)
    for start, average in zip(first, ema.tensors().values(), strict=True):
        torch.testing.assert_close(average, start + expected, atol=1e-5, rtol=1e-6)


def test_swapping_is_exact_both_ways_also_after_an_error():
    model = toy()
    ema = WeightAverage(model, 0.5)
    move(model, 1)
    ema.update()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    averages = [average.clone() for average in ema.tensors().values()]
    places = [average.data_ptr() for average in ema.tensors().values()]
    with ema.swapped():
        assert all(map(torch.equal, model.parameters(), averages))
        assert [parameter.data_ptr() for parameter in model.parameters()] == places     # nothing is copied
    with pytest.raises(ZeroDivisionError), ema.swapped():
        _ = 1 / 0
    assert all(map(torch.equal, model.parameters(), weights))
    assert all(map(torch.equal, ema.tensors().values(), averages))


def test_inside_a_swap_nothing_else_is_allowed():
    ema = WeightAverage(toy(), 0.5)
    with ema.swapped():
        for use in (ema.update, ema.tensors, ema.restart):
            with pytest.raises(AssertionError):
                use()


def test_loading_in_place_takes_effect_and_restart_takes_the_weights():
    model = toy()
    ema = WeightAverage(model, 0.5)
    for average in ema.tensors().values():
        average.zero_()
    with ema.swapped():
        assert not any(parameter.any() for parameter in model.parameters())
    ema.restart()
    assert all(map(torch.equal, model.parameters(), ema.tensors().values()))


def test_only_fp32_weights_are_averaged():
    with pytest.raises(AssertionError, match=r"0\.weight"):
        WeightAverage(toy().bfloat16(), 0.5)


def _sharded(place: RankInfo) -> int:
    """Returns how many averages were compared."""
    with joined(Parallel(engine="fsdp", device="cpu"), place) as world:
        return _compare(world.size)


def _compare(size: int) -> int:
    x = torch.ones(2, 6)
    whole, model = toy(), toy()
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    ema, whole_ema = WeightAverage(model, 0.75), WeightAverage(whole, 0.75)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, whole)]
    for _ in range(3):
        for m, optimizer, average in zip((model, whole), optimizers, (ema, whole_ema), strict=True):
            optimizer.zero_grad()
            m(x).square().sum().backward()
            optimizer.step()
            average.update()
        with torch.no_grad():                   # an evaluation leaves the root's weights gathered; swapping must not be fooled by it
            before = model(x)
            with ema.swapped(), whole_ema.swapped():
                torch.testing.assert_close(model(x), whole(x))
                assert not torch.equal(model(x), before)
            assert torch.equal(model(x), before)
    for (name, average), expected in zip(ema.tensors().items(), whole_ema.tensors().values(), strict=True):
        assert isinstance(average, DTensor), name
        torch.testing.assert_close(average.full_tensor(), expected)
    return len(ema.tensors())


@pytest.mark.parametrize("size", [1, 2, 4])     # at 4 the last layer's 3 rows leave a rank with none
def test_sharded_averages_equal_whole_ones(size):
    assert run_ranks(size, _sharded) == [len(WeightAverage(toy(), 0.75).tensors())] * size
