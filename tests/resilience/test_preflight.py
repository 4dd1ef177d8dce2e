"""Preflight on real connected ranks: what differs on one of them is named, and a run folder that is not shared is not trained in."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from vitscale.checkpoint.room import free_bytes
from vitscale.data.index import open_index
from vitscale.data.quickstart import pack_digits
from vitscale.errors import ClusterError
from vitscale.objectives import num_parameters
from vitscale.parallel.rank_info import RankInfo
from vitscale.parallel.world import joined
from vitscale.recipe import load_recipe
from vitscale.resilience import checks, speed
from vitscale.resilience.checks import Finding
from vitscale.resilience.preflight import BadNode, PreflightResult, RankReport, compare, judge, look, merge, preflight
from vitscale.shapes.storage import checkpoint_bytes, retained_checkpoints

SMALL = ["model.width=32", "model.depth=3", "model.heads=2", "model.mlp=64"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight") / "digits"
    pack_digits(folder)
    open_index((str(folder / "train-*.tar"),))
    return folder


def _rank(place: RankInfo, folder: Path, shards: str, odd: str) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
    """-> findings, the error preflight ends with, its facts.  Rank 1 lives on a node of its own, and is odd in one way."""
    logging.disable(logging.CRITICAL)
    os.environ["SLURMD_NODENAME"] = f"n{place.rank + 1}"
    place = RankInfo(place.rank, place.size, 0, 1)
    overrides, index = [], open_index((shards,))
    if place.rank == 1:
        if odd == "clock":
            real = checks.clock
            checks.clock = lambda: real() + 10.0
        elif odd == "version":
            real_versions = checks.versions
            checks.versions = lambda engine: real_versions(engine) | {"torch": "2.10.0"}
        elif odd == "recipe":
            overrides = ["optim.lr=1e-9"]
        elif odd == "folder":
            folder = folder / "of-node-2"
            folder.mkdir()
            checks.SHARED_S = 0.3
        elif odd == "slow":     # as an old node is
            os.environ["MKL_CBWR"] = "COMPATIBLE"       # the matrix products of a CPU of fifteen years ago: less than half the speed
        elif odd == "dead":
            torch.mm = _broken
        elif odd == "shards":
            index = open_index((shards.replace("train", "val"),))
    if odd != "slow":       # what else runs on this machine must not be seen
        overrides.append("resilience.straggler_ratio=1000")
    recipe = load_recipe("quickstart", [*SMALL, *overrides, f"resilience.exclude_bad_nodes={odd == 'slow'}"])
    with joined(recipe.parallel, place) as world:
        found = look(world, recipe, folder, [index])
        try:
            preflight(recipe, folder, [index], world)
            error, facts = "", {}
        except ClusterError as raised:
            error, facts = f"{raised.exit_code} {raised}", dict(raised.facts)
        return [finding.__dict__ for finding in found.findings], error, facts


def _broken(*args: object, **kwargs: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


@pytest.mark.slow       # two processes for each case
@pytest.mark.parametrize(("odd", "state", "error"), [
    ("nothing", "ok", ""),
    ("clock", "warning", ""),
    ("version", "failed", "2 preflight found what would end the run:\n  n2 (rank 1): torch 2.10.0: on the other ranks it is"),
    ("recipe", "failed", "2 preflight found what would end the run:\n  n2 (rank 1): recipe"),
    ("shards", "failed", "2 preflight found what would end the run:\n  n2 (rank 1): index of data.train"),
    ("folder", "failed", "2 preflight found what would end the run:\n  n2 (rank 1): run folder not shared: "),
    ("dead", "failed", "75 preflight: n2 (rank 1): GEMM: the device does not multiply matrices: CUDA error: an illegal memory access was "
                       "encountered; leave this node out"),
    ("slow", "warning", "75 preflight: n2 (rank 1): GEMM "),
])
def test_the_odd_rank_is_named(tmp_path: Path, digits: Path, odd: str, state: str, error: str) -> None:
    ranks = run_ranks(2, _rank, tmp_path, str(digits / "train-*.tar"), odd)
    assert ranks[0] == ranks[1] or odd == "slow"        # measured twice
    findings, said, facts = ranks[0]
    assert said.startswith(error)
    assert bool(said) == bool(error)
    odd_ones = [(finding["name"], finding["state"], finding["where"]) for finding in findings if finding["state"] != "ok"]
    name = {"version": "torch", "folder": "run folder", "dead": "GEMM", "slow": "GEMM", "shards": "index of data.train"}.get(odd, odd)
    assert odd_ones == ([] if odd == "nothing" else [(name, state, "n2 (rank 1)")])
    if odd in ("dead", "slow"):
        assert facts == {"cause": "bad_node", "nodes": ["n2"]}
    if odd == "clock":
        assert next(finding["value"] for finding in findings if finding["state"] == "warning") == pytest.approx(10, abs=0.5)
    if odd == "nothing":
        values = {finding["name"]: finding["value"] for finding in findings}
        assert {"GEMM", "all-reduce", "disk space", "disk speed", "run folder", "shards", "open files", "clock"} <= values.keys()
        assert all(values[name] > 0 for name in ("GEMM", "all-reduce", "disk space", "disk speed", "shards"))
    assert [path.name for path in tmp_path.iterdir()] == (["of-node-2"] if odd == "folder" else [])


def report(rank: int, flops: float | None = 100.0, clock: float = 1000.0, **facts: str) -> RankReport:
    return RankReport(rank, f"n{rank // 2 + 1}", [], {"torch": "2", **facts}, flops, clock, 0.001)


def test_the_one_that_differs_is_the_one_that_most_do_not_share() -> None:
    reports = [report(rank) for rank in range(6)]
    assert compare(reports, 1.5).of("ok") == compare(reports, 1.5).findings
    reports[0] = report(0, torch="1")
    reports[3] = report(3, clock=997.5)
    reports[4] = report(4, flops=60.0)
    verdict = compare(reports, 1.5)
    assert [(finding.name, finding.where) for finding in verdict.findings] == [
        ("GEMM", "n3 (rank 4)"), ("torch", "n1 (rank 0)"), ("clock", "n2 (rank 3)")]
    assert (verdict.dead, verdict.slow) == ([], ["n3"])
    assert compare([report(0), report(1, flops=67.0)], 1.5).slow == []
    assert compare([report(0), report(1, flops=66.0)], 1.5).slow == ["n1"]
    assert compare([report(0), report(1, flops=None)], 1.5).dead == ["n1"]


def test_a_slow_node_is_left_out_only_if_asked() -> None:
    verdict = PreflightResult([Finding("GEMM", "warning", 3.0, "times slower", "than others", "n2 (rank 8)")], [], ["n2"])
    judge(verdict, exclude_slow=False)
    with pytest.raises(BadNode, match=r"n2 \(rank 8\): GEMM 3 times slower: than others"):
        judge(verdict, exclude_slow=True)


def test_rows_are_one_for_all_that_is_well_and_one_for_each_that_is_not() -> None:
    found = merge([Finding("disk", "ok", 5.0, where="a"), Finding("disk", "ok", 3.0, where="b"), Finding("disk", "failed", where="c"),
                   Finding("gemm", "ok", 7.0, where="a"), Finding("gemm", "ok", 8.0, where="b")])
    assert found == [Finding("disk", "ok", 3.0, where="b"), Finding("disk", "failed", where="c"), Finding("gemm", "ok", 7.0)]


def test_the_disk_is_held_against_the_checkpoints(tmp_path: Path) -> None:
    """By models whose checkpoints just fit, and do not, on this very disk."""
    free = free_bytes(tmp_path)

    def with_share(share: float) -> Finding:
        """Of the free bytes, for one checkpoint."""
        depth = max(int(free * share / (16 * 12 * 1024**2)), 1)
        recipe = load_recipe("quickstart", ["model.width=1024", "model.heads=16", f"model.depth={depth}", "model.mlp=4096"])
        parameters = num_parameters(recipe.model, recipe.objective)
        assert checkpoint_bytes(recipe, parameters) == pytest.approx(free * share, rel=0.2)
        assert retained_checkpoints(recipe) == 4
        return checks.disk_space(recipe, parameters, tmp_path)

    if free < 8e9:
        pytest.skip(f"wants a disk with 8 GB free, {tmp_path} has {free / 1e9:.0f}")
    assert with_share(0.1).state == "ok"
    assert with_share(0.5).state == "warning"
    assert "lower checkpoint.keep (2)" in with_share(0.5).words
    assert with_share(2.0).state == "failed"
    assert "give another runs_dir" in with_share(2.0).words


def test_shards_whose_content_moved_are_seen(tmp_path: Path, digits: Path) -> None:
    shards = tmp_path / "digits"
    shutil.copytree(digits, shards)
    index = open_index((str(shards / "train-*.tar"),))
    assert checks.shards([index], 0).state == "ok"
    victim = shards / "train-000000.tar"
    facts = victim.stat()
    content = victim.read_bytes()
    victim.write_bytes(content[512:] + content[:512])
    os.utime(victim, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    finding = checks.shards([open_index((str(shards / "train-*.tar"),))], 0)
    assert finding.state == "failed"
    assert "train-000000.tar: sample" in finding.words


def test_what_nvidia_smi_says() -> None:
    """Its output on a node; no GPU is here to ask."""
    driver, errors = checks.smi_findings("570.86.15, 3, 41, 118.52, 700.00, 1980, 1980\n")
    assert (driver.value, driver.words) == ("570.86.15", "41 C, 118.52 of 700.00 W, 1980 of 1980 MHz")
    assert (errors.state, errors.value) == ("warning", 3)
    assert len(checks.smi_findings("570.86.15, [N/A], 41, 118.52, 700.00, 1980, 1980\n")) == 1
    assert checks.smi_findings("") == checks.smi_findings("NVIDIA-SMI has failed\n") == []


def test_speeds_are_speeds(tmp_path: Path) -> None:
    assert 1e8 < speed.matmul_flops(torch.device("cpu"), torch.float32, 256, 0.01) < 1e14
    assert 1e5 < speed.write_speed(tmp_path / "probe", 1 << 20) < 1e12
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        speed.write_speed(tmp_path / "nowhere" / "probe", 1 << 20)
