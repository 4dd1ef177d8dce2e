"""Blocks compile to few graphs, whatever their number: a graph for each would pass torch's limit, and the rest would run uncompiled."""

import pytest
import torch

from vitscale.models import build_model, initialise
from vitscale.recipe import Vit


@pytest.mark.slow       # the tracer, though not the compiler
def test_all_drop_rates_share_one_graph() -> None:
    torch._dynamo.reset()
    model = build_model(Vit(width=16, depth=12, heads=2, mlp=24, patch=4, image=8, classes=7, drop_path=0.5))
    initialise(model, 0)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    images, keep = torch.randn(2, 3, 8, 8), torch.tensor([[1.0, 0.0]] * 24)
    expected = model(images, keep)
    for unit in model.units():
        unit.forward = torch.compile(unit.forward, backend=count)
    assert torch.allclose(model(images, keep), expected, atol=1e-5)
    assert graphs <= 2
    with torch.no_grad():
        model.eval()(images)
    assert graphs <= 4
