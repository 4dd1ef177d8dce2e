"""Before the first step: what every rank finds of its machine, held against what the others find; bad nodes are named."""

import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vitscale.counts import plural
from vitscale.data.index import SetIndex
from vitscale.errors import EXIT_REQUEUE, ClusterError
from vitscale.objectives import num_parameters
from vitscale.parallel.rank_info import node_name
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.recipe.external import package_of
from vitscale.resilience import checks, speed
from vitscale.resilience.checks import Finding
from vitscale.terminal import size

log = logging.getLogger(__name__)
CLOCK_S = 2.0                       # clocks that differ by more are named
SLOW_EXCHANGE = 2e9                 # bytes/s: between GPUs, less than this is a fallback to slow sockets.  Not measured on a GPU.
_LARGEST_EXCHANGE = 64 << 20        # bytes
_SMALLEST_EXCHANGE = 1 << 20


class BadNode(ClusterError):
    """A device does not work; the job can go on without its node."""

    exit_code = EXIT_REQUEUE

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.facts = {"cause": "bad_node", "nodes": list(nodes)}


@dataclass(frozen=True)
class RankReport:
    """What one rank says of itself."""

    rank: int
    node: str
    findings: list[Finding]
    facts: Mapping[str, str] = field(default_factory=dict)     # what must be the same everywhere: versions, recipe, index
    flops: float | None = None      # None: its device does not multiply
    clock: float = 0.0              # seconds since 1970, read by all ranks at one moment
    spread_s: float = 0.0           # how far from it the reading may be

    @property
    def where(self) -> str:
        return f"{self.node} (rank {self.rank})"


@dataclass(frozen=True)
class PreflightResult:
    """The findings of all ranks, and the nodes that are at fault."""

    findings: list[Finding]
    dead: list[str]                 # nodes whose device does not work
    slow: list[str]                 # nodes whose device is slow

    def of(self, state: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.state == state]


def preflight(recipe: Recipe, folder: Path, indexes: Sequence[SetIndex], world: World) -> None:
    """Look at everything; warn of what is odd.  Collective.  Raises, on every rank alike, ClusterError for what the user must mend, and
    BadNode, which asks for a requeue, for a device that does not work; with `resilience.exclude_bad_nodes` for a slow one too."""
    began = time.monotonic()
    verdict = look(world, recipe, folder, indexes)
    if world.is_first:
        for finding in verdict.of("warning"):
            log.warning("preflight: %s", line(finding))
        log.info("preflight, %.1f s: %s", time.monotonic() - began, "; ".join(
            line(finding, brief=True) for finding in verdict.of("ok") if isinstance(finding.value, float)))
    judge(verdict, exclude_slow=recipe.resilience.exclude_bad_nodes)


def judge(verdict: PreflightResult, exclude_slow: bool) -> None:
    """Raises as preflight() says."""
    failed = verdict.of("failed")
    if verdict.dead or any(finding.name == "all-reduce" for finding in failed):
        raise BadNode(f"preflight: {'; '.join(map(line, failed))}", verdict.dead)
    if failed:
        raise ClusterError("preflight found what would end the run:\n" + "\n".join(f"  {line(finding)}" for finding in failed))
    if verdict.slow and exclude_slow:
        raise BadNode(f"preflight: {'; '.join(line(finding) for finding in verdict.of('warning') if finding.name == 'GEMM')}", verdict.slow)


def line(finding: Finding, brief: bool = False) -> str:
    """`n2 (rank 8): GEMM 41 TFLOP/s: ...`"""
    words = "" if brief or not finding.words else f": {finding.words}"
    return f"{finding.where + ': ' if finding.where else ''}{finding.name} {measured(finding)}".rstrip() + words


def measured(finding: Finding) -> str:
    value = f"{finding.value:.4g}" if isinstance(finding.value, float) else str(finding.value)
    return f"{value} {finding.unit}".strip()


def look(world: World, recipe: Recipe, folder: Path | None, indexes: Sequence[SetIndex]) -> PreflightResult:
    """Every check, on every rank.  Collective; the same verdict on every rank.  `folder` None: no run is meant, the disk is left out."""
    mine = _survey(world, recipe, folder, indexes)
    verdict = world.broadcast(compare(reports, recipe.resilience.straggler_ratio) if (reports := world.gather(mine)) else None)
    if world.size > 1 and not verdict.dead:         # an exchange waits for a dead device in vain
        parts = world.gather(_exchange(world, recipe))
        found = world.broadcast(merge(parts) if parts else None)
        dead = [] if world.size == sum(finding.state == "failed" for finding in found) else [
            finding.where.partition(" (")[0] for finding in found if finding.state == "failed" and finding.where]
        verdict = replace(verdict, findings=verdict.findings + found, dead=dead)
    return verdict


def _survey(world: World, recipe: Recipe, folder: Path | None, indexes: Sequence[SetIndex]) -> RankReport:
    first_of_node = world.local_rank == 0
    findings: list[Finding] = []
    facts = checks.versions(recipe.parallel.engine) | package_of(recipe.model) | {"recipe": checks.recipe_digest(recipe)}
    for number, index in enumerate(indexes):
        facts[f"index of {('data.train', 'data.val')[number]}"] = index.hash
    if world.device.type == "cuda":
        findings += checks.gpu(world.device) + checks.shared_memory(world)
    flops, gemm = _gemm(world, recipe)
    findings.append(gemm)
    if folder is not None:
        findings += _disk(world, recipe, folder)
    if indexes and first_of_node:
        findings.append(checks.shards(indexes, world.rank))
    if first_of_node:
        findings.append(checks.open_files(indexes))
    world.barrier()
    began = time.monotonic()
    world.barrier()
    now, spread = checks.clock(), time.monotonic() - began
    where = RankReport(world.rank, node_name(), [], facts, flops, now, spread)
    return replace(where, findings=[replace(finding, where=where.where) for finding in findings])


def _gemm(world: World, recipe: Recipe) -> tuple[float | None, Finding]:
    on_gpu = world.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu and recipe.parallel.precision == "bf16" else torch.float32
    try:
        flops = speed.matmul_flops(world.device, dtype, 8192 if on_gpu else 256, budget_s=0.1)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return None, Finding("GEMM", "failed", "", "", f"the device does not multiply matrices: {reason}; leave this node out")
    scale, unit = (1e12, "TFLOP/s") if on_gpu else (1e9, "GFLOP/s")
    return flops, Finding("GEMM", "ok", flops / scale, unit, str(dtype).removeprefix("torch."))


def _disk(world: World, recipe: Recipe, folder: Path) -> list[Finding]:
    """Collective."""
    findings, token, parameters = [], None, num_parameters(recipe.model, recipe.objective)
    if world.is_first:
        findings.append(checks.disk_space(recipe, parameters, folder))
        token = f".preflight-{os.urandom(16).hex()}"
        try:
            (folder / token).write_text(token)
        except OSError as error:
            findings.append(Finding("run folder", "failed", "", "", f"{folder}: cannot be written ({error.strerror}); look at the disk"))
            token = None
    nodes = world.broadcast(len(set(names)) if (names := world.gather(node_name())) else None)
    token = world.broadcast(token)
    if token is not None:
        findings.append(checks.shared(folder, token))
        world.barrier()
        if world.is_first:
            (folder / token).unlink(missing_ok=True)
        if world.local_rank == 0 and findings[-1].state == "ok":
            findings.append(checks.disk_speed(recipe, parameters, folder, nodes))
    return findings


def _exchange(world: World, recipe: Recipe) -> Finding:
    """An all-reduce of as many bytes as the gradient has, at most 64 MiB."""
    num_bytes = max(min(4 * num_parameters(recipe.model, recipe.objective), _LARGEST_EXCHANGE), _SMALLEST_EXCHANGE)
    where = f"{node_name()} (rank {world.rank})"
    try:
        latency_s, bandwidth = speed.exchange(world.device, num_bytes)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Finding("all-reduce", "failed", "", "", f"ranks cannot exchange: {reason}; look at the network, and at this node", where)
    words = f"{size(num_bytes)} over {plural(world.size, 'rank')}; {latency_s * 1e6:.0f} us for one number"
    if world.device.type == "cuda" and bandwidth < SLOW_EXCHANGE:
        return Finding("all-reduce", "warning", bandwidth / 1e9, "GB/s",
                       f"{words}; less than {SLOW_EXCHANGE / 1e9:.0f}: NCCL may have fallen back to sockets, NCCL_DEBUG=INFO tells", where)
    return Finding("all-reduce", "ok", bandwidth / 1e9, "GB/s", words, where)


def compare(reports: Sequence[RankReport], slow_ratio: float) -> PreflightResult:
    """What all ranks found, and what only shows beside each other: slow devices, other versions, clocks, recipes and shards."""
    findings = merge([finding for report in reports for finding in report.findings])
    dead = sorted({report.node for report in reports if report.flops is None})
    slow: list[str] = []
    rates = [report.flops for report in reports if report.flops is not None]
    if len(rates) > 1:
        middle = statistics.median_high(rates)
        for report in reports:
            if report.flops is not None and report.flops * slow_ratio < middle:
                slow.append(report.node)
                findings.append(Finding(
                    "GEMM", "warning", middle / report.flops, "times slower", f"than the median of the ranks (named from "
                    f"{slow_ratio:g} on): heat, power, or other work on the node? It holds all others back", report.where))
    findings += _differences(reports)
    return PreflightResult(findings, dead, sorted(set(slow)))


def _differences(reports: Sequence[RankReport]) -> list[Finding]:
    findings: list[Finding] = []
    for name in dict.fromkeys(name for report in reports for name in report.facts):
        values = [report.facts.get(name, "none") for report in reports]
        usual, _ = Counter(values).most_common(1)[0]
        for report, value in zip(reports, values, strict=True):
            if value != usual:
                shown = (value[:12], usual[:12])
                words = {"recipe": "the recipe is not that of the other ranks; start all ranks with one file and the same overrides"}.get(
                    name, "the shards are not those of the other ranks; give all nodes the same ones" if name.startswith("index") else
                    f"on the other ranks it is {shown[1]}; use one environment on all nodes")
                findings.append(Finding(name, "failed", shown[0], "", words, report.where))
    middle = statistics.median_low(report.clock for report in reports)
    for report in reports:
        off = report.clock - middle
        if abs(off) > CLOCK_S + report.spread_s:
            findings.append(Finding("clock", "warning", off, "s", "off the other nodes' (named from 2 s on): files look newer or older "
                                    "than they are, and times in logs lie; have NTP set right there", report.where))
    if len(reports) > 1 and not any(finding.name == "clock" for finding in findings):
        apart = max(report.clock for report in reports) - min(report.clock for report in reports)
        findings.append(Finding("clock", "ok", apart, "s apart"))
    return findings


def merge(findings: Sequence[Finding]) -> list[Finding]:
    """One row for what is well on all ranks (the lowest of their numbers), a row each for what is not."""
    merged: list[Finding] = []
    for name in dict.fromkeys(finding.name for finding in findings):
        same = [finding for finding in findings if finding.name == name]
        well = [finding for finding in same if finding.state == "ok"]
        if well:
            numbers = [finding for finding in well if isinstance(finding.value, (int, float))]
            lowest = min(numbers, key=lambda finding: float(finding.value)) if numbers else well[0]
            merged.append(replace(lowest, where=lowest.where if len(well) < len(same) else ""))
        merged += [finding for finding in same if finding.state != "ok"]
    return merged
