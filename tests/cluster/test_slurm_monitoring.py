"""A real Prometheus scrapes a real run of four ranks on two nodes of a real SLURM: every picture shows data, an alert fires."""

import json
import shutil
import socket
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from faults import Fault, faults, let_go
from jobs import PACE, Job
from masks import MASKS, masked
from nvml import replayed
from prometheus import Prometheus, missing
from running import TIMEOUT_S, UNLABELLED, Run, start

from slurm import ADDRESSES, REPOSITORY, Cluster
from vitscale.metrics import METRICS
from vitscale.observe.exporter import Exporter
from vitscale.observe.grafana import BOARDS
from vitscale.observe.prometheus_files import MONITORING
from vitscale.observe.targets import FOLDER, target_file
from vitscale.parallel.rank_info import node_name

pytestmark = pytest.mark.slow       # a whole job of four processes, and scrapes enough to take rates from
NAME = "watched"
OTHERS = {"views": MASKS, "gaussian": ("objective={name: lejepa, directions: 8, hidden: 32, embedding: 16}", "checkpoint.best=null",
                                       "evaluate={}")}


@contextmanager
def a_gpus_exporter(runs: Path, folder: Path) -> Iterator[str]:
    """Another process's real exporter, of a node whose GPU answers from a recorded sample."""
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).parents[1] / "nvml.py"), str(runs)]
    process = subprocess.Popen(command, env=replayed(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)


@contextmanager
def of_other_objectives(yard: Path) -> Iterator[None]:
    """Runs on this machine that tell what a classifier has no numbers of; they stand still once they have told all of it, and end here."""
    (yard / "unlabelled.yaml").write_text(UNLABELLED)
    masked(yard / "data" / "digits", yard / "data" / "masked")
    started = {}
    for name, more in OTHERS.items():
        (here := yard / f"holds {name}").mkdir()
        started[name] = start(yard, f"name={name}", "observe.exporter=true", "resilience.hang_timeout=900", *more, recipe="unlabelled.yaml",
                              environment=faults(here, Fault("hold", step=12, rank=0)))
    try:
        yield
        for name, process in started.items():
            Run(yard / "runs" / name).wait_for_step(11, process)
            process.terminate()
            let_go(yard / f"holds {name}")
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 75, output
    finally:
        for process in started.values():
            process.kill()


def with_bad_images(shards: Path, out: Path) -> None:
    """The same shards; the first five images of one of them are no more than their headers."""
    out.mkdir()
    for path in shards.glob("*.tar"):
        (out / path.name).write_bytes(path.read_bytes())
    first = sorted(out.glob("train-*.tar"))[0]
    with tarfile.open(first) as tar:
        images = [member for member in tar if member.name.endswith(".png")][:5]
    with open(first, "r+b") as file:
        for image in images:
            file.seek(image.offset_data + 40)
            file.write(bytes(image.size - 40))


def metric_of(series: str) -> str:
    """vitscale_step_phase_seconds_bucket -> step_phase_seconds."""
    name, parts = series.removeprefix("vitscale_"), ("", "_bucket", "_sum", "_count")
    return next((metric.name for metric in METRICS if name in [metric.name + part for part in parts]), f"not in the table: {series}")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_every_panel_and_every_rule_shows_data_and_an_alert_fires(cluster: Cluster, yard: Path) -> None:
    runs = yard / "runs"
    runs.mkdir()
    with_bad_images(yard / "data" / "digits", yard / "data" / "bad")
    # It stands still until Prometheus has seen the counter at 0: of one that it first sees at 1 it cannot know that it rose.
    meeting = faults(yard, PACE, Fault("hold", step=10, rank=0), Fault("nan", step=12, rank=1))["PYTHONPATH"]
    with Prometheus(runs, yard / "prometheus") as server, a_gpus_exporter(runs, yard / "nvml") as gpu, of_other_objectives(yard):
        job = Job.submit(
            cluster, yard, NAME, "duration=200000 steps", "observe.exporter=true", "data.train=data/bad/train-*.tar",
            "data.val=data/digits/val-*.tar", "evaluate.every=20 steps", "checkpoint.every=20 steps", "data.log_samples=false",
            "data.max_bad_fraction=0.1", "parallel.engine=ddp", options=(f"--export=ALL,PYTHONPATH={meeting}:{REPOSITORY}",))
        try:
            # A node's exporter is found by its file and listens on that node's own address.
            server.until(lambda: server.value(f'sum(up{{run="{NAME}"}})') == 2, "the two nodes' exporters are not up\n")
            found = {one["labels"]["node"]: one["scrapeUrl"] for one in server.ask("targets")["activeTargets"]
                     if one["labels"]["run"] not in OTHERS}
            nodes = set(found) - {"gpu"}
            assert found["gpu"] == f"http://{gpu}/metrics"
            for node in nodes:
                assert found[node].startswith(f"http://{ADDRESSES[node]}:"), found

            server.until(lambda: server.value(f'vitscale_nonfinite_steps_total{{run="{NAME}"}}') == 0, "the counter was not seen at 0")
            let_go(yard)

            def firing() -> list[str]:
                alerts = server.ask("alerts")["alerts"]
                return [one["labels"]["alertname"] for one in alerts if one["state"] == "firing" and one["labels"].get("run") == NAME]

            server.until(lambda: "VitscaleNonFinite" in firing(), "the alert of a step that was not finite did not fire")
            server.until(lambda: (server.value(f'vitscale_checkpoint_seconds_count{{run="{NAME}"}}') or 0) > 1, "no checkpoint was seen")

            for name in OTHERS:
                server.until(lambda: server.value(f'vitscale_steps_total{{run="{name}"}}') == 11, f"{name} did not come to its end\n")  # noqa: B023

            # Every panel of every dashboard, and every recording rule, has at least one finite point.
            empty = []
            for name, board in BOARDS.items():
                for panel in (panel for row in board.rows.values() for panel in row):
                    for query in panel.queries:
                        expr = query.expr.replace("$node", ".*").replace("$__rate_interval", "1m")
                        shown = [expr.replace("$run", run) for run in ((NAME, *OTHERS) if "run" in board.variables else (".*",))]
                        if not any(map(server.range, shown)):
                            empty.append(f"{name}: {panel.title}: {expr}")
            recording = yaml.safe_load((MONITORING / "recording.yml").read_text())
            empty += [rule["record"] for group in recording["groups"] for rule in group["rules"] if not server.range(rule["record"])]
            assert empty == []

            # Every metric of the table is emitted, and every emitted one is in the table.
            emitted = {metric_of(name) for name in server.ask("label/__name__/values") if name.startswith("vitscale_")}
            assert emitted == {metric.name for metric in METRICS}

            # Prometheus has the run's own numbers.
            rows = [row for row in job.run.rows() if "loss" in row]
            assert server.value(f'vitscale_nonfinite_steps_total{{run="{NAME}"}}') == sum(not row["applied"] for row in rows) == 1
            skipped = f'sum(vitscale_samples_skipped_total{{run="{NAME}"}})'
            server.until(lambda: server.value(skipped), "no skipped sample was seen")
            assert (server.value(skipped) or 0) <= len(job.run.rows("quarantine.jsonl"))
            assert server.value(f'count(vitscale_rank_own_seconds{{run="{NAME}"}})') == 4
            steps = server.value(f'vitscale_steps_total{{run="{NAME}"}}')
            assert steps is not None
            assert 12 < steps <= [row for row in job.run.rows() if "loss" in row][-1]["step"]
            assert server.value("vitscale_device_power_watts") == pytest.approx(634.512)
        except BaseException as error:
            error.add_note(job.words)
            raise

        # It withdraws when it ends.
        cluster.command("scancel", job.id)
        targets, others = runs / FOLDER, [f"{name}@{node_name()}.json" for name in OTHERS]
        server.until(lambda: {path.name for path in targets.glob("*.json")} <= {"replayed@gpu.json", *others}, f"not withdrawn: {targets}")
        server.until(lambda: server.value(f'sum(up{{run="{NAME}"}})') is None, "a target is kept after its file has gone")
        assert json.loads((targets / "replayed@gpu.json").read_text())[0]["targets"] == [gpu]


def monitor_job(cluster: Cluster, yard: Path, *options: str, port: int = 9090) -> str:
    """`sbatch slurm/monitor.sh`, edited as its header invites to."""
    (yard / "runs").mkdir(exist_ok=True)
    script = yard / "monitor.sh"
    script.write_text((REPOSITORY / "slurm" / "monitor.sh").read_text().replace("port=9090", f"port={port}"))
    return cluster.sbatch(yard, *options, str(script), "runs")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_prometheus_as_a_job_follows_the_runs_until_it_is_cancelled(cluster: Cluster, yard: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = monitor_job(cluster, yard, port=port)
    log = yard / f"monitor-{job}.log"

    def targets() -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=5) as answer:
                return [one["labels"]["run"] for one in json.load(answer)["data"]["activeTargets"]]
        except OSError:
            return []

    (yard / "runs" / "a").mkdir()
    exporter = Exporter(discovery=target_file(yard / "runs" / "a", "n1"), labels={"run": "a", "node": "n1"})
    try:
        cluster.wait_until(lambda: targets() == ["a"], "Prometheus does not follow the run")
    except AssertionError as error:
        error.add_note(log.read_text() if log.exists() else "no log")
        raise
    finally:
        exporter.close()
    assert f"then http://127.0.0.1:{port}" in log.read_text()
    cluster.command("scancel", job)
    cluster.wait_for(job, "CANCELLED")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason=str(missing()))
def test_without_prometheus_the_job_says_so_in_one_line(cluster: Cluster, yard: Path) -> None:
    programs = yard / "programs"
    programs.mkdir()
    for folder in ("/usr/sbin", "/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if program.name != "prometheus" and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    job = monitor_job(cluster, yard, f"--export=ALL,PATH={Path(sys.executable).parent}:{programs}")
    assert cluster.wait_for(job, "FAILED")["ExitCode"] == "2:0"
    lines = [line for line in (yard / f"monitor-{job}.log").read_text().splitlines() if "prometheus" in line]
    assert lines == ["vitscale: no program `prometheus` on n1: install it, or load it by SETUP"]
