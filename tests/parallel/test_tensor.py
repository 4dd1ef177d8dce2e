"""Ranks in a grid, that share blocks' matrices, or hold copies of one state, or both: two by two train as one process does, and what they
leave anyone can resume from."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from vitscale.checkpoint.lease import Lease
from vitscale.checkpoint.store import STATE, CheckpointWriter, RunFacts, checkpoints_in, damage_in, read_into, read_whole, shapes_in
from vitscale.errors import RecipeError
from vitscale.models import build_model, initial_value
from vitscale.objectives import Seen, build_task
from vitscale.optim.build import build_optimizer
from vitscale.optim.ema import WeightAverage
from vitscale.parallel.engine import Work
from vitscale.parallel.engines import open_engine
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import World, joined, refuse_uneven_nodes
from vitscale.recipe import Checkpoint, Classification, Optim, Parallel, Vit

# cut in two, the 18 are 9 rows, which two ranks do not halve; nor do 7 classes and 5 tokens
MODEL = Vit(width=12, depth=2, heads=6, mlp=18, patch=4, image=8, classes=7, layer_scale=0.5)
BATCH, STEPS, CLIP = 12, 10, 0.5
ADAMW = Optim(lr=3e-3, weight_decay=0.1)
OTHERS = {name: Optim(name=name, lr=lr, betas=(0.9, 0.99), weight_decay=0.1) for name, lr in (("lamb", 0.02), ("sgd", 0.1))}
pytestmark = pytest.mark.slow       # real ranks, three and four of them
ONE = Parallel(engine="ddp", device="cpu")


@dataclass(frozen=True)
class Leg:
    """Steps [first, last), from a checkpoint (None: the first weights), leaving one below `target`."""

    parallel: Parallel
    optim: Optim = ADAMW
    first: int = 0
    last: int = STEPS
    source: str | None = None
    target: str | None = None


def cut(tensor: int = 2, **options: object) -> Parallel:
    return Parallel(engine="fsdp", tensor=tensor, device="cpu", **options)


def copies(replicate: int | str = 2, **options: object) -> Parallel:
    return Parallel(engine="fsdp", replicate=replicate, device="cpu", **options)


def go(place: RankInfo, legs: list[Leg]) -> list[dict]:
    """Each leg in turn on the same ranks."""
    with joined(legs[0].parallel, place) as world:
        return [walk(replace(world, parallel=leg.parallel), leg) for leg in legs]


NODES = {       # of each rank (local rank, ranks on its node) -> what is said where each node is to hold a copy
    "two of two": ([(0, 2), (1, 2), (0, 2), (1, 2)], ""), "one of four": ([(0, 4), (1, 4), (2, 4), (3, 4)], ""),
    "uneven": ([(0, 3), (1, 3), (2, 3), (0, 1)], "nodes wants as many ranks on each node; here are nodes of 1 and of 3"),
    "by turns": ([(0, 2), (0, 2), (1, 2), (1, 2)], "nodes wants ranks that are numbered node by node")}


def go_and_tell(place: RankInfo, legs: list[Leg]) -> tuple[list[dict], dict[str, tuple[str, dict[str, int]]]]:
    """The legs; and of NODES what each rank says, and how it divides the ranks."""
    with joined(legs[0].parallel, place) as world:
        said = {}
        for name, (nodes, _) in NODES.items():
            local_rank, local_size = nodes[place.rank]
            one, text = replace(world, local_rank=local_rank, local_size=local_size, parallel=copies("nodes")), ""
            try:
                refuse_uneven_nodes(one)
            except RecipeError as error:
                text = str(error)
            said[name] = (text, {} if text else one.axes.sizes)
        return [walk(replace(world, parallel=leg.parallel), leg) for leg in legs], said


def walk(world: World, leg: Leg) -> dict:
    share = BATCH // world.data_size
    engine = open_engine(leg.parallel, world, Work(share, 1, CLIP))
    with torch.device("meta"):
        skeleton = build_model(MODEL)

    def first_value(name: str, shape: torch.Size) -> torch.Tensor:      # nothing is zero, so that the first step tests every gradient
        return initial_value(skeleton, name, shape, 0) + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))

    engine.adopt(model := engine.materialise(lambda: build_model(MODEL), first_value), build_optimizer(model, leg.optim))
    ema = WeightAverage(engine.model, 0.9)
    if leg.source is not None:
        state = Path(leg.source) / STATE
        engine.restore(shapes_in(state), lambda targets: read_into(state, targets))
        read_into(state, {f"ema.{name}": value for name, value in ema.tensors().items()})
    task, losses, norms = build_task(MODEL, Classification()), [], []
    for step in range(leg.first, leg.last):
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(BATCH, 3, 8, 8, generator=generator), torch.randint(7, (BATCH,), generator=generator)
        mine = slice(share * world.data_rank, share * (world.data_rank + 1))
        read = (images[mine], labels[mine]) if world.leads else (torch.zeros(share, 3, 8, 8), torch.zeros(share, dtype=torch.int64))
        with engine.micro_step(last=True):
            seen = Seen(*engine.sync_inputs(*read))      # what the first of those that share the matrices has read counts for all
            loss = task.losses(engine.forward(seen.images, None), seen).sum()
            engine.backward(loss * (world.data_size / BATCH))
        norms.append(engine.step().grad_norm)
        ema.update()
        losses.append(float(world.sum_over_samples(loss.detach())) / BATCH)
    tensors = engine.tensors() | {f"ema.{name}": value for name, value in ema.tensors().items()}
    if leg.target is not None:
        lease = Lease.take(Path(leg.target)) if world.is_first else None
        world.barrier()
        writer = CheckpointWriter(Path(leg.target) / "checkpoints", rank=world.rank, lease=lease, attempt=1, settings=Checkpoint())
        writer.save(tensors, RunFacts(leg.last, {}, {}, leg.parallel.engine, world.size))
        writer.close()
        if lease is not None:
            lease.release()
    lies = {name: ([type(placement).__name__ for placement in value.placements], tuple(value.to_local().shape))
            for name, value in tensors.items() if isinstance(value, DTensor)}
    whole = {name: (value.full_tensor() if isinstance(value, DTensor) else value).tolist() for name, value in tensors.items()}
    return {"losses": losses, "norms": norms, "state": whole, "lies": lies}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One process: unbroken with each optimizer, and the checkpoint of half the way."""
    folder = tmp_path_factory.mktemp("one")
    whole, half, *others = go(RankInfo(), [Leg(ONE), Leg(ONE, last=5, target=str(folder)), *(Leg(ONE, optim) for optim in OTHERS.values())])
    assert half["losses"] == whole["losses"][:5]
    (checkpoint,) = checkpoints_in(folder / "checkpoints")
    return {"whole": whole, "half": half, "checkpoint": str(checkpoint), **dict(zip(OTHERS, others, strict=True))}


@pytest.fixture(scope="module")
def four(one: dict, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same two by two, in several ways; from one process's checkpoint; and from one of theirs on four ranks that share nothing."""
    folder = tmp_path_factory.mktemp("four")
    checkpoint = str(folder / "checkpoints" / "step-00000005")
    legs = {"plain": Leg(cut()), "recomputed": Leg(cut(recompute="selective")),
            **{name: Leg(cut(), optim) for name, optim in OTHERS.items()},
            "half": Leg(cut(), last=5, target=str(folder)), "from one": Leg(cut(), first=5, source=one["checkpoint"]),
            "as left": Leg(cut(), first=5, last=5, source=checkpoint), "unshared": Leg(cut(1), first=5, source=checkpoint),
            "copies": Leg(copies()), "copies lamb": Leg(copies(), OTHERS["lamb"]), "copies of shared": Leg(copies(tensor=2, gather="once")),
            "copies half": Leg(copies(gather="once"), last=5, target=str(folder / "copies")),
            "copies from shared": Leg(copies(gather="once"), first=5, source=checkpoint)}
    ranks, said = zip(*run_ranks(4, go_and_tell, list(legs.values()), timeout_s=600), strict=True)
    return {name: [rank[number] for rank in ranks] for number, name in enumerate(legs)} | {
        "nodes": said, "checkpoint": checkpoint, "of copies": str(folder / "copies" / "checkpoints" / "step-00000005")}


def assert_same(found: dict, wanted: dict, first: int = 0) -> None:
    assert found["losses"] == pytest.approx(wanted["losses"][first:], abs=1e-5)
    assert found["norms"] == pytest.approx(wanted["norms"][first:], rel=1e-5)
    assert found["state"].keys() == wanted["state"].keys()
    for name, value in wanted["state"].items():
        if "qkv.bias" not in name:      # the keys' has no gradient but rounding noise, which Adam blows up
            assert (torch.tensor(found["state"][name]) - torch.tensor(value)).abs().max() < 1e-5, name


@pytest.mark.parametrize("name", ["plain", "recomputed", "copies", "copies of shared"])
def test_two_by_two_ranks_equal_one(one: dict, four: dict, name: str) -> None:
    for rank in four[name]:
        assert_same(rank, one["whole"])
    before, after = (torch.tensor(one[leg]["state"]["model.blocks.1.attn.qkv.weight"]) for leg in ("half", "whole"))
    assert (before - after).abs().max() > 1e-3      # they did learn, so the agreement means something


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_see_whole_tensors(one: dict, four: dict, name: str) -> None:
    for rank in (*four[name], *four.get(f"copies {name}", ())):
        assert_same(rank, one[name])


def test_the_matrices_are_sharded_both_ways(four: dict) -> None:
    for rank in four["plain"]:
        for kind in ("model.", "optim.", "ema."):
            for layer, shape in (("attn.qkv", (9, 12)), ("attn.proj", (6, 6))):
                name = f"{kind}blocks.0.{layer}.weight" + (".exp_avg" if kind == "optim." else "")
                placements, local = rank["lies"][name]
                assert local == shape
                assert len(placements) == 2
                assert all("Shard" in placement for placement in placements)
        assert rank["lies"]["model.blocks.0.norm1.weight"][1] == (6,)


@pytest.mark.parametrize(("name", "kinds", "shape"), [
    ("copies", ["Replicate", "Shard"], (18, 12)), ("copies of shared", ["Replicate", "_StridedShard", "Shard"], (18, 12)),
    ("unshared", ["Shard"], (9, 12))])
def test_a_group_holds_the_whole_state_sharded(four: dict, name: str, kinds: list[str], shape: tuple[int, ...]) -> None:
    for rank in four[name]:
        for tensor in ("model.blocks.0.attn.qkv.weight", "optim.blocks.0.attn.qkv.weight.exp_avg", "ema.blocks.0.attn.qkv.weight"):
            assert rank["lies"][tensor] == (kinds, shape)


def test_a_checkpoint_moves(one: dict, four: dict) -> None:
    """To one process and from it, to ranks that share nothing, and back to those that wrote it: the numbers are those of whole tensors."""
    alone = go(RankInfo(), [Leg(ONE, first=5, source=four["checkpoint"])])[0]
    for found in (alone, *four["from one"], *four["unshared"], *four["copies from shared"]):
        assert_same(found, one["whole"], first=5)
    saved = read_whole(Path(four["checkpoint"]) / STATE, "model.")
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        name: tuple(value.shape) for name, value in read_whole(Path(one["checkpoint"]) / STATE, "model.").items()}
    for rank, before in zip(four["as left"], four["half"], strict=True):
        assert rank["state"] == before["state"]
        assert all(rank["state"][f"model.{name}"] == value.tolist() for name, value in saved.items())


def test_a_checkpoint_of_copies_moves(one: dict, four: dict) -> None:
    """Two groups of two leave it: to one group of three, three copies, three of ddp, one process."""
    source = four["of copies"]
    assert damage_in(Path(source)) is None
    legs = [Leg(parallel, first=5, source=source) for parallel in (copies(1, gather="once"), copies(3), ONE)]
    for rank in (*run_ranks(3, go, legs), go(RankInfo(), [Leg(ONE, first=5, source=source)])):
        for found in rank:
            assert_same(found, one["whole"], first=5)


@pytest.mark.all        # three more processes; two by two exchange rows already
def test_three_ranks_with_all_the_same_samples(one: dict) -> None:
    """Each holds all of the queries', keys' or values' heads and computes a third of all three."""
    for (found,) in run_ranks(3, go, [Leg(cut(3))]):
        assert_same(found, one["whole"])


def test_ranks_that_do_not_fall_into_groups_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"parallel\.tensor: 2 does not divide the 3 ranks of the run"), \
            joined(cut(), RankInfo(0, 3, 0, 3)):
        pass
    with pytest.raises(RecipeError, match=r"2 does not divide the 3 ranks of a node"), joined(cut(), RankInfo(0, 6, 0, 3)):
        pass


@pytest.mark.parametrize("name", NODES)
def test_nodes_that_cannot_each_hold_a_copy_are_refused_on_every_rank(four: dict, name: str) -> None:
    _, wanted = NODES[name]
    for said in four["nodes"]:
        text, sizes = said[name]
        assert (wanted in text) if wanted else (text == "")
        assert sizes == ({} if wanted else {"replicate": 4 // NODES[name][0][0][1], "shard": NODES[name][0][0][1], "tensor": 1})
