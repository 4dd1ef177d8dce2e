"""Rollout, flow, relevance, distances and components against what they are by definition, or against another library."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from backbones import BACKBONES
from torch import Tensor

from vitscale.explain import (
    Look,
    Unexplained,
    attention_distance,
    attention_flow,
    embedding_filters,
    feature_colours,
    feature_similarity,
    grad_cam,
    gradient_rollout,
    position_similarity,
    relevance,
    rollout,
)
from vitscale.explain.filters import principal_components
from vitscale.models import Backbone, VisionTransformer, build_model, initialise
from vitscale.recipe.schema import Vit

ATTENDING = [name for name, (model, _) in BACKBONES.items() if isinstance(model, Vit)]


def some_maps(layers: int, images: int, heads: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(layers, images, heads, tokens, tokens, generator=generator, dtype=torch.float64)).softmax(dim=-1)


def built(name: str) -> Backbone:
    model = build_model(BACKBONES[name][0])
    initialise(model, 0)
    for value in model.parameters():        # heads begin at zero, and through them no gradient comes
        value.data += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    return model.eval()


def pictures(count: int = 2, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ATTENDING)
def test_rows_sum_to_one(name: str) -> None:
    """Of every kind of attention: maps, rollouts, and what the classifier reads."""
    look = Look(built(name), pictures())
    one = torch.tensor(1.0)
    for rows in (look.maps, rollout(look.maps), gradient_rollout(look.maps, look.map_gradients())):
        assert rows.min() >= 0
        torch.testing.assert_close(rows.sum(dim=-1), one.expand(rows.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(look.reading.sum(dim=1), one.expand(2))


def test_rollout_is_the_product_of_the_layers() -> None:
    maps = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]], [[0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.6, 0.2, 0.2]]])
    first, second = (0.5 * layer + 0.5 * torch.eye(3) for layer in maps)
    by_hand = torch.stack([torch.stack([sum(second[i, k] * first[k, j] for k in range(3)) for j in range(3)]) for i in range(3)])
    torch.testing.assert_close(rollout(maps[:, None, None]), by_hand[None])
    torch.testing.assert_close(rollout(maps[:, None, None], residual=0.0), (maps[1] @ maps[0])[None])
    assert torch.equal(rollout(maps[:, None, None], residual=1.0), torch.eye(3)[None])


def test_rollout_averages_heads_and_keeps_images_apart() -> None:
    maps = some_maps(3, 2, 4, 5)
    torch.testing.assert_close(rollout(maps), torch.cat([rollout(maps[:, image:image + 1].mean(dim=2, keepdim=True)) for image in (0, 1)]))


@pytest.mark.parametrize("residual", [-0.1, 1.1])
def test_a_residual_is_a_share(residual: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        rollout(some_maps(1, 1, 1, 2), residual)
    with pytest.raises(ValueError, match="0 to 1"):
        attention_flow(some_maps(1, 1, 1, 2), torch.tensor([[1.0, 0.0]]), residual)


def test_relevance_is_its_recursion() -> None:
    """Chefer et al. 2021, equations 5 and 6, written out with loops."""
    maps = some_maps(3, 1, 2, 4)
    gradients = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1), dtype=maps.dtype)
    total = np.eye(4)
    for layer in range(3):
        mean = np.zeros((4, 4))
        for head, i, j in itertools.product(range(2), range(4), range(4)):
            mean[i, j] += max(float(maps[layer, 0, head, i, j] * gradients[layer, 0, head, i, j]), 0.0) / 2
        total = total + mean @ total
    np.testing.assert_allclose(relevance(maps, gradients)[0].numpy(), total - np.eye(4), rtol=1e-12)


def test_gradient_rollout_without_a_gradient_looks_at_itself() -> None:
    maps = some_maps(2, 1, 2, 3)
    assert torch.equal(gradient_rollout(maps, torch.zeros_like(maps)), torch.eye(3, dtype=maps.dtype)[None])


@pytest.mark.parametrize("residual", [0.5, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_flow_is_networkx_maximum_flow(residual: float, seed: int) -> None:
    maps = some_maps(3, 1, 2, 5, seed)
    reading = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
    graph, layers = nx.DiGraph(), maps.mean(dim=2)[:, 0]
    for token in range(5):
        graph.add_edge("source", (3, token), capacity=float(reading[0, token]))
    for layer, above, below in itertools.product(range(3), range(5), range(5)):
        width = (1 - residual) * float(layers[layer, above, below]) + residual * (above == below)
        graph.add_edge((layer + 1, above), (layer, below), capacity=width)
    theirs = [nx.maximum_flow_value(graph, "source", (0, token)) for token in range(5)]
    ours = attention_flow(maps, reading, residual)[0]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-8)
    assert len({round(flow, 6) for flow in theirs}) > 1      # or any constant would pass


def test_distance_of_one_and_of_all() -> None:
    """A head that looks at the patch itself, and one that looks at all alike, on a grid of 2 x 2 patches of 8 pixels."""
    itself, alike = torch.eye(5), torch.full((5, 5), 0.2)
    found = attention_distance(torch.stack([itself, alike])[None, None], (2, 2), 8, before=1)
    assert found[0, 0] == 0
    assert float(found[0, 1]) == pytest.approx((0 + 8 + 8 + 8 * 2**0.5) / 4)


def test_principal_components_are_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    rows = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    ours, shares = principal_components(rows, 5)
    theirs = PCA(5).fit(rows.numpy())
    np.testing.assert_allclose(np.abs(ours.numpy()), np.abs(theirs.components_), atol=1e-4)
    np.testing.assert_allclose(shares.numpy(), theirs.explained_variance_ratio_, rtol=1e-4)
    assert torch.equal(ours, principal_components(rows, 5)[0])


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_filters_features_and_grad_cam(name: str) -> None:
    look = Look(built(name), pictures())
    filters, shares = embedding_filters(look.model, 4)
    assert filters.shape[1] == 3
    assert len(filters) == len(shares) == 4
    assert shares.sum() <= 1.0001
    grid = look.grid
    cam = grad_cam(*look.cam())
    assert cam.shape == (2, *grid)
    colours = feature_colours(look.features)
    assert colours.shape == (2, *grid, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    torch.testing.assert_close(feature_similarity(look.features).diagonal(dim1=1, dim2=2), torch.ones(2, grid[0] * grid[1]))


def test_logits_are_the_models_own() -> None:
    for name in BACKBONES:
        model, images = built(name), pictures()
        if BACKBONES[name][1].name not in ("mae", "inpainting"):
            torch.testing.assert_close(Look(model, images).logits, model(images))


def test_a_gradient_of_maps_tells_what_the_logit_does() -> None:
    """Along a small change of one map the class's logit rises as its gradient says."""
    model = built("vit")
    assert isinstance(model, VisionTransformer)
    look = Look(model, pictures(1))
    gradient = look.map_gradients(3)[1, 0]
    attention = model.blocks[1].attn
    change, plain = 1e-2 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)), attention.map
    attention.mix = lambda query, key, value, layout: (plain(query, key, layout) + change) @ value
    with torch.no_grad():
        rise = float(model(pictures(1))[0, 3] - look.logits[0, 3])
    assert rise == pytest.approx(float((gradient * change).sum()), rel=0.05)


def test_positions_are_like_themselves_and_their_own_grid_decides() -> None:
    model = built("vit")
    similarity = position_similarity(model)
    assert similarity.shape == (4, 4, 4, 4)
    torch.testing.assert_close(similarity[2, 3, 2, 3], torch.tensor(1.0))
    assert position_similarity(model, (8, 8)).shape == (8, 8, 8, 8)


@pytest.mark.parametrize(("name", "says"), [("vit-modern", "rotary"), ("vit-relative", "relative"), ("swin", "SwinTransformer"),
                                            ("convnext", "ConvNeXt")])
def test_no_table_of_positions(name: str, says: str) -> None:
    with pytest.raises(Unexplained, match=says):
        position_similarity(built(name))


@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_no_attention_says_what_works(name: str) -> None:
    with pytest.raises(Unexplained, match="grad-cam, similarity and pca work"):
        _ = Look(built(name), pictures()).maps


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(Unexplained, match="no class 5; this model's classes are 0 to 4"):
        Look(built("vit"), pictures()).cam(5)
