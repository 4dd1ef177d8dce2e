"""Local, axial, sparse and linear attention: equal to a dense masked reference, at less than its cost."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import build_model, initialise
from vitscale.models.attention import Attention, Layout
from vitscale.models.attention_axial import AxialAttention
from vitscale.models.attention_linear import LinearAttention
from vitscale.models.attention_local import LocalAttention
from vitscale.models.attention_sparse import SparseAttention
from vitscale.models.position import rotary
from vitscale.recipe import Vit
from vitscale.recipe.check_model import model_contradictions

WIDTH, HEADS = 24, 3
KINDS = {
    "windows": (LocalAttention, {"window": 3, "halo": 0}),
    "local": (LocalAttention, {"window": 3, "halo": 1}),
    "wide halo": (LocalAttention, {"window": 2, "halo": 3}),
    "axial": (AxialAttention, {}),
    "sparse": (SparseAttention, {"block": 4, "random": 1, "layer": 5}),
    "sparse neighbours": (SparseAttention, {"block": 3, "random": 0, "layer": 0}),
    "linear": (LinearAttention, {}),
}
GRIDS = [(6, 6), (5, 7), (8, 3), (2, 2)]        # with 3 x 3 windows and blocks of 4: even, uneven, long, hardly any


def built(name: str, **options) -> Attention:
    kind, numbers = KINDS[name]
    layer = kind(WIDTH, HEADS, **numbers, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.4)
    return layer.eval()


def looks(layer: Attention, head: int, grid: tuple[int, int], one: int, other: int) -> bool:
    """Whether patch `one` looks at patch `other`, in plain words."""
    (row, column), (to_row, to_column) = divmod(one, grid[1]), divmod(other, grid[1])
    if isinstance(layer, LocalAttention):
        def near(place: int, to: int) -> bool:
            begin = place - place % layer.window
            return begin - layer.halo <= to <= begin + layer.window - 1 + layer.halo
        return near(row, to_row) and near(column, to_column)
    if isinstance(layer, AxialAttention):
        return row == to_row if head < 2 else column == to_column       # two of three heads along rows
    if isinstance(layer, SparseAttention):
        num_blocks = math.ceil(grid[0] * grid[1] / layer.block)
        return other // layer.block in layer.chosen(num_blocks)[one // layer.block].tolist()
    return True


def reference(layer: Attention, tokens: Tensor, layout: Layout) -> Tensor:
    """The whole N x N map, and what is not seen filled with minus infinity; of linear attention equation 5 of its paper."""
    query, key, value = layer.project(tokens, layout)
    if isinstance(layer, LinearAttention):
        similar = torch.einsum("bhik,bhjk->bhij", torch.nn.functional.elu(query) + 1, torch.nn.functional.elu(key) + 1)
        weights = similar / similar.sum(dim=-1, keepdim=True)
    else:
        before, number = layout.before, tokens.shape[1]
        seen = torch.tensor([[[
            min(i, j) < before or looks(layer, head, layout.grid, i - before, j - before) for j in range(number)]
            for i in range(number)] for head in range(HEADS)])
        logits = torch.einsum("bhik,bhjk->bhij", query, key) / math.sqrt(query.shape[-1])
        weights = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return layer.proj(torch.einsum("bhij,bhjk->bihk", weights, value).flatten(2)), weights


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "qkv_bias": False}], ids=["plain", "qk_norm"])
@pytest.mark.parametrize(("grid", "before", "turned"), [
    ((6, 6), 0, False), ((6, 6), 2, True), ((5, 7), 1, False), ((5, 7), 0, True), ((8, 3), 3, False), ((2, 2), 1, False)])
@pytest.mark.parametrize("name", KINDS)
def test_equal_to_the_dense_reference_with_gradients_and_map(name, grid, before, turned, options):
    layer = built(name, **options)
    layout = Layout(grid, before, rotary(grid, WIDTH // HEADS) if turned else None)
    tokens = torch.randn(2, before + grid[0] * grid[1], WIDTH, generator=torch.Generator().manual_seed(3), requires_grad=True)
    wanted, weights = reference(layer, tokens, layout)
    given = layer(tokens, layout)
    assert wanted.std() > 0.1
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
    by_map, found = layer(tokens, layout, return_map=True)
    torch.testing.assert_close(by_map, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-5)
    assert ((found == 0) == (weights == 0)).all()
    down = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)) / 10
    inputs = (tokens, *layer.parameters())
    for ours, theirs in zip(torch.autograd.grad(given, inputs, down), torch.autograd.grad(wanted, inputs, down), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["local", "axial", "sparse", "linear"])
def test_gradients_are_those_of_finite_differences(name):
    kind, numbers = KINDS[name]
    torch.manual_seed(0)
    layer = kind(4, 2, **numbers).double()
    tokens = torch.randn(1, 1 + 8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: layer(given, Layout((2, 4), 1)), (tokens,))


def test_the_reach_of_each_kind():
    """What is seen by the patch in the middle of 7 x 7."""
    def reach(name: str, head: int = 0) -> int:
        tokens = torch.randn(1, 49, WIDTH)
        return int((built(name)(tokens, Layout((7, 7)), return_map=True)[1][0, head, 24] > 0).sum())

    assert reach("windows") == 9
    assert reach("local") == 25
    assert reach("axial") == reach("axial", 2) == 7
    assert reach("sparse") == 16                # four blocks of four
    assert reach("sparse neighbours") == 9      # three blocks of three
    assert reach("linear") == 49


def test_the_drawn_blocks_differ_by_layer_and_are_distinct():
    drawn = [SparseAttention(WIDTH, HEADS, block=4, random=3, layer=layer).chosen(64) for layer in range(12)]
    for chosen in drawn:
        assert chosen.shape == (64, 6)
        assert all(len(set(row)) == 6 and {number, (number + 1) % 64, (number - 1) % 64} == set(row[:3])
                   for number, row in enumerate(chosen.tolist()))
    pairs = [{(number, other) for number, row in enumerate(chosen.tolist()) for other in row[3:]} for chosen in drawn]
    shared = [len(one & other) for at, one in enumerate(pairs) for other in pairs[:at]]
    assert max(shared) < 30                     # of 192; by chance 9
    often = torch.stack(drawn)[:, :, 3:].flatten().bincount(minlength=64)
    assert (often.min(), often.max()) > (15, 15)       # of 36 on average: none is left out or everywhere
    assert often.max() < 70


def test_what_is_drawn_never_changes():
    """A checkpoint goes on with the blocks that it was trained with."""
    assert SparseAttention(WIDTH, HEADS, block=4, random=2, layer=3).chosen(9)[:, 3:].tolist() == [
        [2, 3], [3, 8], [8, 6], [8, 5], [0, 2], [7, 0], [0, 2], [5, 4], [4, 5]]


def flops(attention: str, side: int, **numbers) -> int:
    """Of the attention's products in one block without linear layers, on meta."""
    section = Vit(width=16, depth=1, heads=2, mlp=24, patch=1, image=side, attention=attention, position="none", pool="mean", **numbers)
    with torch.device("meta"):
        block = build_model(section).units()[0]
        with FlopCounterMode(display=False) as counter:
            block.attn(torch.empty(1, side**2, 16), Layout((side, side)))
    return counter.get_total_flops() - 2 * side**2 * 4 * 16**2


def test_costs_grow_as_stated():
    """Twice the side is four times the patches: full costs 16 times as much, axial 8, the others 4."""
    for name, numbers, factor in (
            ("full", {}, 16), ("axial", {}, 8), ("linear", {}, 4), ("local", {"window": 4, "halo": 1}, 4),
            ("sparse", {"sparse_block": 4}, 4)):
        assert flops(name, 32, **numbers) == factor * flops(name, 16, **numbers), name
    assert flops("full", 32) == 4 * 1024**2 * 16
    assert flops("local", 32, window=4, halo=1) == 4 * 1024 * 36 * 16
    assert flops("axial", 32) == 4 * 1024 * 32 * 16
    assert flops("sparse", 32, sparse_block=4) == 4 * 1024 * 24 * 16
    assert flops("linear", 32) == 4 * 1024 * (8 + 1) * 16


@pytest.mark.parametrize("name", ["local", "axial", "sparse", "linear"])
def test_no_map_is_made_unless_asked_for(name):
    """The largest tensor that 32 x 32 patches keep is far from 1024 x 1024."""
    layer, largest = built(name), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(1, 1024, WIDTH, requires_grad=True), Layout((32, 32)))
    assert largest < HEADS * 1024 * 32 * 12
    assert largest < HEADS * 1024**2 / 2


SECTIONS = [
    {"attention": "local", "window": 3, "halo": 1}, {"attention": "axial"}, {"attention": "sparse", "sparse_block": 4, "sparse_random": 1},
    {"attention": "linear"},
]
SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image": 24, "classes": 7}


@pytest.mark.parametrize("options", SECTIONS, ids=lambda options: options["attention"])
def test_in_a_model_with_registers_tokens_and_other_sizes(options):
    section = Vit(**SMALL, **options, registers=2, class_tokens=2, position="rotary", qk_norm=True)
    model = build_model(section)
    initialise(model, 0)
    with torch.no_grad():
        model.head.weight.normal_()
    for height, width in ((24, 24), (32, 20), (8, 40)):
        images = torch.randn(2, 3, height, width)
        found = model.forward_features(images, names=["blocks.1", "blocks.1.attention"])
        tokens = 4 + height * width // 16
        assert found["blocks.1.attention"].shape == (2, 2, tokens, tokens)
        torch.testing.assert_close(found["blocks.1.attention"].sum(-1), torch.ones(2, 2, tokens))
        torch.testing.assert_close(model.forward_features(images, names=["blocks.1"])["blocks.1"], found["blocks.1"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", SECTIONS, ids=lambda options: options["attention"])
def test_recomputed_and_in_bf16(options):
    model = build_model(Vit(**SMALL, **options))
    initialise(model, 0)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        model.head.weight.normal_()
    model(images).square().sum().backward()
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    exact = model(images).detach()
    for unit in model.units():
        unit.forward = lambda *args, inner=unit.forward: checkpoint(inner, *args, use_reentrant=False)
    model(images).square().sum().backward()
    assert all(torch.equal(parameter.grad, once[name]) for name, parameter in model.named_parameters())
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
        parameter.grad = None
    logits = model(images.bfloat16())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.15)
    logits.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_linear_attention_survives_a_query_that_likes_nothing():
    """elu + 1 of -20 rounds to 0, and 0 / 0 is no number."""
    layer = built("linear")
    with torch.no_grad():
        layer.qkv.bias[:2 * WIDTH] = -40.0
    out = layer(torch.randn(2, 5, WIDTH), Layout((1, 5)))
    out.sum().backward()
    assert out.isfinite().all()
    assert layer.qkv.weight.grad.isfinite().all()


@pytest.mark.slow       # the tracer, though not the compiler
@pytest.mark.parametrize("options", SECTIONS, ids=lambda options: options["attention"])
def test_all_blocks_share_one_graph(options):
    torch._dynamo.reset()
    model = build_model(Vit(**{**SMALL, "depth": 10}, **options, drop_path=0.5))
    initialise(model, 0)
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    images, keep = torch.randn(2, 3, 24, 24), torch.tensor([[1.0, 0.0]] * 20)
    expected = model.forward_features(images, keep)["norm"]
    for unit in model.units():
        unit.forward = torch.compile(unit.forward, backend=count, fullgraph=True)
    torch.testing.assert_close(model.forward_features(images, keep)["norm"], expected, rtol=0, atol=1e-5)
    assert graphs <= 2


@pytest.mark.all        # half a minute of C++ compiler for each
@pytest.mark.parametrize("options", SECTIONS, ids=lambda options: options["attention"])
def test_compiled_blocks_have_the_same_gradients(options):
    """torch's own compiler has had gradients of gathers wrong."""
    torch._dynamo.reset()
    model = build_model(Vit(**SMALL, **options))
    initialise(model, 0)
    images, found = torch.randn(2, 3, 24, 24), []
    for _ in range(2):
        model.zero_grad()
        norm = model.forward_features(images)["norm"]
        norm.square().sum().backward()
        found.append([norm.detach(), *(parameter.grad.clone() for name, parameter in model.blocks.named_parameters())])
        for unit in model.units():
            unit.forward = torch.compile(unit.forward)
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", SECTIONS, ids=lambda options: options["attention"])
def test_built_on_meta_it_is_the_same_once_filled(options):
    direct = build_model(Vit(**SMALL, **options))
    initialise(direct, 3)
    with torch.device("meta"):
        late = build_model(Vit(**SMALL, **options))
    late.to_empty(device="cpu")
    for buffer in late.buffers():
        buffer.fill_(77)
    initialise(late, 3)
    images = torch.randn(1, 3, 24, 24)
    assert torch.equal(late.forward_features(images)["norm"], direct.forward_features(images)["norm"])


@pytest.mark.parametrize(("options", "key", "sentence"), [
    ({"attention": "local", "window": 4, "halo": 1}, "model.window", "4 does not divide the 6 patches on a side; these do: 1, 2, 3, 6"),
    ({"window": 4}, "model.window", "belongs to model.attention local, not to full"),
    ({"attention": "linear", "sparse_random": 1}, "model.sparse_random", "belongs to model.attention sparse, not to linear"),
    ({"attention": "sparse"}, "model.sparse_block",
     "14 of 36 patches are 3 blocks, of which each would see 6, which is all: smaller blocks, or model.attention full"),
    ({"attention": "axial", "position": "relative"}, "model.position",
     "a bias for each offset belongs to model.attention full, not to axial"),
    ({"attention": "axial", "heads": 1}, "model.heads", "axial attention wants at least two: one along rows, one along columns"),
])
def test_what_does_not_go_together_is_said_when_the_recipe_is_checked(options, key, sentence):
    assert model_contradictions(Vit(**{**SMALL, **options})) == [(key, sentence)]


@pytest.mark.parametrize("options", SECTIONS, ids=lambda options: options["attention"])
def test_what_goes_together_is_let_through(options):
    assert model_contradictions(Vit(**SMALL, **options)) == []
