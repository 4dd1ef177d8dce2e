"""How ranks are divided: pure, whatever their number; and nobody divides them elsewhere."""

import ast
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitscale
from vitscale.errors import RecipeError
from vitscale.recipe import Parallel
from vitscale.recipe.axes import Axes, axes_of, check_nodes

few = st.integers(1, 4)
grids = st.builds(Axes, few, few, few)


@settings(deadline=None)
@given(grids)
def test_every_rank_stands_in_a_cell_of_its_own(axes: Axes) -> None:
    places = [axes.at(rank) for rank in range(axes.size)]
    # in order: the last axis varies fastest
    assert [tuple(place.values()) for place in places] == list(itertools.product(*(range(size) for size in axes.sizes.values())))
    assert all(list(place) == ["replicate", "shard", "tensor"] for place in places)
    for rank in (-1, axes.size):
        with pytest.raises(ValueError, match=f"rank {rank} of {axes.size}"):
            axes.at(rank)


@settings(deadline=None)
@given(grids)
def test_the_parts_of_a_batch_are_each_led_by_one_rank(axes: Axes) -> None:
    parts = [axes.data_rank(rank) for rank in range(axes.size)]
    assert sorted(set(parts)) == list(range(axes.data_size))
    assert [parts[rank] for rank in range(axes.size) if axes.leads(rank)] == list(range(axes.data_size))
    for one, other in itertools.combinations(range(axes.size), 2):
        differ = {name for name in axes.sizes if axes.at(one)[name] != axes.at(other)[name]}
        assert (parts[one] == parts[other]) == (differ == {"tensor"})       # the same samples for those that share matrices alone
    assert axes.copy_size * axes.replicate == axes.data_size * axes.tensor == axes.size


@given(nodes=few, groups=few, tensor=st.integers(1, 4))
def test_of_nodes_each_holds_a_copy(nodes: int, groups: int, tensor: int) -> None:
    per_node = groups * tensor
    axes = axes_of(Parallel(engine="fsdp", replicate="nodes", tensor=tensor), nodes * per_node, per_node)
    assert axes == Axes(nodes, groups, tensor)
    assert axes == axes_of(Parallel(engine="fsdp", replicate=nodes, tensor=tensor), nodes * per_node, per_node)
    assert [axes.at(rank)["replicate"] for rank in range(axes.size)] == [rank // per_node for rank in range(axes.size)]
    check_nodes([(rank % per_node, per_node) for rank in range(axes.size)])


@given(size=st.integers(1, 64), replicate=st.integers(1, 9), tensor=st.integers(1, 9), nodes=st.integers(1, 4))
def test_whole_groups_or_none(size: int, replicate: int, tensor: int, nodes: int) -> None:
    parallel, size = Parallel(engine="fsdp", replicate=replicate, tensor=tensor), size * nodes
    whole = size % (replicate * tensor) == 0 and (size // nodes) % tensor == 0
    if whole:
        assert axes_of(parallel, size, size // nodes).size == size
        return
    key = "tensor" if size % tensor or size // nodes % tensor else "replicate"
    with pytest.raises(RecipeError, match=rf"^parallel\.{key}: "):
        axes_of(parallel, size, size // nodes)


@pytest.mark.parametrize(("engine", "wanted"), [("ddp", Axes(replicate=6)), ("zero", Axes(shard=6)), ("accelerate", Axes(replicate=6)),
                                                ("fsdp", Axes(shard=6))])
def test_other_engines_have_one_axis(engine: str, wanted: Axes) -> None:
    assert axes_of(Parallel(engine=engine), 6, 3) == wanted


def test_ranks_that_do_not_fall_into_groups_are_named() -> None:
    with pytest.raises(RecipeError, match=r"replicate: 3 does not divide the 4 ranks of the run; start a multiple of 3 ranks, or set "
                                          r"parallel.replicate to a divisor of 4$"):
        axes_of(Parallel(engine="fsdp", replicate=3), 4)
    with pytest.raises(RecipeError, match=r"replicate: 4 does not divide the 4 ranks of the run in groups of parallel.tensor 2; start "
                                          r"a multiple of 8 ranks, or set parallel.replicate to a divisor of 2$"):
        axes_of(Parallel(engine="fsdp", replicate=4, tensor=2), 4)
    with pytest.raises(RecipeError, match="nodes wants as many ranks on each node; there are 5 in all and 3 on one"):
        axes_of(Parallel(engine="fsdp", replicate="nodes"), 5, 3)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.booleans())
def test_nodes_are_equal_runs_of_ranks(sizes: list[int], by_turns: bool) -> None:
    """Of nodes of those sizes, ranks numbered node by node or going round them."""
    places = [(local, size, node) for node, size in enumerate(sizes) for local in range(size)]
    if by_turns:
        places.sort(key=lambda place: (place[0], place[2]))
    lie = by_turns and len(sizes) > 1 and max(sizes) > 1
    if len(set(sizes)) > 1 or lie:
        with pytest.raises(RecipeError, match=r"parallel\.replicate: nodes wants (as many ranks on each node|ranks that are numbered)"):
            check_nodes([place[:2] for place in places])
    else:
        check_nodes([place[:2] for place in places])


def divisions(text: str) -> list[str]:
    """Where a file divides by parallel.tensor, or takes quotient or remainder of ranks or their number."""
    tree, found = ast.parse(text), []
    names = {target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) and _reads(node.value, ("tensor",))
             for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Div, ast.FloorDiv, ast.Mod)):
            left, right, is_whole = node.left, node.right, not isinstance(node.op, ast.Div)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "divmod":
            left, right, is_whole = *node.args, True
        else:
            continue
        by_tensor = _reads(right, ("tensor",)) or (isinstance(right, ast.Name) and right.id in names)
        if by_tensor or (is_whole and not isinstance(left, ast.Constant) and _reads(left, ("rank", "size"))):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def _reads(node: ast.AST, attributes: tuple[str, ...]) -> bool:
    """Whether an expression is, or holds, one of these attributes of what is called a world, its axes, a fleet, or a recipe's section."""
    return any(isinstance(one, ast.Attribute) and one.attr in attributes
               and ast.unparse(one.value).rpartition(".")[2] in ("parallel", "world", "axes", "fleet", "place") for one in ast.walk(node))


def test_nobody_divides_ranks_elsewhere() -> None:
    for text in ("world.size // world.axes.tensor", "self.world.rank % 4", "divmod(place.rank, n)", "fleet.size // tensor",
                 "tensor = recipe.parallel.tensor\nseconds / tensor"):
        assert divisions(text), text
    package = Path(vitscale.__file__).parent
    # how the heads and widths that ranks are to share come out even, the other asks
    exempt = {package / "recipe" / "axes.py", package / "shapes" / "tensor.py"}
    assert [f"{path.relative_to(package)}:{line}" for path in sorted(package.rglob("*.py")) if path not in exempt
            for line in divisions(path.read_text(encoding="utf-8"))] == []
