"""Blocks compile to few graphs, whatever their number: a graph for each would pass torch's limit, and the rest would run uncompiled."""

import pytest
import torch
from backbones import kept_of_groups

from vitscale.models import build_model, initialise
from vitscale.recipe import Vit


@pytest.mark.slow       # the tracer, though not the compiler
@pytest.mark.parametrize("group", [None, 24])
def test_all_drop_rates_share_one_graph(group: int | None) -> None:
    """Also where each leaves another number of images out."""
    torch._dynamo.reset()
    model = build_model(Vit(width=16, depth=12, heads=2, mlp=24, patch=4, image=8, classes=7, drop_path=0.5, drop_path_group=group))
    initialise(model, 0)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    images = torch.randn(24, 3, 8, 8)
    keep = torch.tensor([[1.0, 0.0] * 12] * 24) if group is None else kept_of_groups(torch.rand(24, 24), torch.tensor(model.drop_rates), 24)
    expected = model(images, keep)
    for unit in model.units():
        unit.forward = torch.compile(unit.forward, backend=count)
    assert torch.allclose(model(images, keep), expected, atol=1e-5)
    assert graphs <= (2 if group is None else 4)
    with torch.no_grad():
        model.eval()(images)
    assert graphs <= 4
