"""A real scrape over loopback; the discovery file; and that nothing here can stop a run."""

import json
import logging
import math
import socket
import statistics
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vitscale.metrics import METRICS
from vitscale.observe.board import Board
from vitscale.observe.exporter import Exporter


@pytest.fixture
def board():
    """Of a node with the ranks 8 and 9."""
    return Board((8, 9))


@pytest.fixture
def exporter(board):
    exporter = Exporter(board=board)
    yield exporter
    exporter.close()


def scrape(exporter):
    """-> ({sample name with labels: value}, families)"""
    with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}, families


SECONDS = {"data_wait": 0.002, "h2d": 0.001, "compute": 0.2, "optimizer": 0.01}
STEP = {
    "images_total": 4096, "steps_total": 8, "loss": 2.25, "grad_norm": 0.5, "learning_rate": 1e-3, "mfu_ratio": 0.4,
    "last_step_timestamp_seconds": 1.7e9,
    "run_seconds_total": {"startup": 2.0, "train": 1.5},
}


def test_a_scrape_shows_what_was_set(exporter):
    exporter.update({**STEP, "build_info": {"version": "1", "torch": "2", "python": "3"}})
    samples, _ = scrape(exporter)
    assert samples["vitscale_images_total",] == 4096
    assert samples["vitscale_loss",] == 2.25
    assert samples["vitscale_run_seconds_total", ("bucket", "train")] == 1.5
    assert samples["vitscale_build_info", ("python", "3"), ("torch", "2"), ("version", "1")] == 1


def test_ranks_stand_beside_each_other_and_their_histograms_are_one(exporter, board):
    first, second = board.writer(8), board.writer(9)
    for _ in range(2):
        first.step(SECONDS | {"checkpoint": 0.0})
    second.step({"compute": 0.4})
    second.set("rank_ready_batches", 0)
    samples, _ = scrape(exporter)
    assert samples["vitscale_rank_phase_seconds_total", ("phase", "compute"), ("rank", "8")] == pytest.approx(0.4)
    assert samples["vitscale_rank_phase_seconds_total", ("phase", "compute"), ("rank", "9")] == 0.4
    assert samples["vitscale_step_phase_seconds_sum", ("phase", "compute")] == pytest.approx(0.8)
    counts = [samples["vitscale_step_phase_seconds_bucket", ("le", bound), ("phase", "compute")] for bound in ("0.1", "0.3", "1.0", "+Inf")]
    assert counts == [0, 2, 3, 3]
    assert samples["vitscale_step_phase_seconds_count", ("phase", "data_wait")] == 2
    assert samples["vitscale_step_phase_seconds_count", ("phase", "checkpoint")] == 0      # none was written
    assert samples["vitscale_rank_ready_batches", ("rank", "9")] == 0
    assert ("vitscale_rank_ready_batches", ("rank", "8")) not in samples                    # never set: not a 0


def test_another_nodes_exporter_tells_nothing_of_the_run(board):
    exporter = Exporter(board=board, tells_run=False)
    try:
        exporter.update({"loss": 3.0, "host_memory_size_bytes": 5.0})
        samples, families = scrape(exporter)
        assert samples["vitscale_host_memory_size_bytes",] == 5
        others = {metric.full_name.removesuffix("_total") for metric in METRICS if metric.scope != "run"}
        assert {family.name for family in families} == others
    finally:
        exporter.close()


def test_counters_are_there_from_the_start_and_gauges_only_once_they_are_known(exporter):
    samples, _ = scrape(exporter)
    assert samples["vitscale_restarts_total", ("cause", "hang")] == 0
    assert samples["vitscale_checkpoint_failures_total",] == 0
    assert ("vitscale_eval_top1_ratio",) not in samples


def test_a_label_that_the_table_does_not_know_is_not_shown(exporter, caplog):
    exporter.update({"samples_skipped_total": {"truncated": 2, "my dog": 1}})
    samples, _ = scrape(exporter)
    assert samples["vitscale_samples_skipped_total", ("reason", "truncated")] == 2
    assert not any("my dog" in str(key) for key in samples)
    assert "my dog" in caplog.text


def test_the_table_and_only_the_table_is_served(exporter):
    _, families = scrape(exporter)
    served = {(family.name, family.type, family.documentation) for family in families}
    kinds = {"info": "gauge"}       # in the text format an info is a gauge that is 1
    names = {metric: metric.full_name.removesuffix("_total") for metric in METRICS}
    assert served == {(names[metric], kinds.get(metric.kind, metric.kind), metric.help) for metric in METRICS}


def test_counters_take_totals_and_never_fall(exporter):
    for total in (100, 200, 150, 180, 210):     # a rollback in the middle
        exporter.update({"images_total": total})
    assert scrape(exporter)[0]["vitscale_images_total",] == 210


def test_a_value_that_is_not_finite_is_shown_and_none_is_not(exporter):
    exporter.update({"loss": math.nan, "mfu_ratio": None})
    samples, _ = scrape(exporter)
    assert math.isnan(samples["vitscale_loss",])
    assert ("vitscale_mfu_ratio",) not in samples


def test_what_cannot_be_shown_is_said_once_and_stops_nothing(exporter, caplog):
    exporter.update({"no_such_metric": 1, "loss": "high", "run_seconds_total": 3, "grad_norm": 7})
    assert scrape(exporter)[0]["vitscale_grad_norm",] == 7
    assert len(caplog.records) == 1
    assert "no_such_metric" in caplog.text


def test_it_listens_on_loopback_alone_by_default(exporter):
    assert exporter.address.startswith("127.0.0.1:")


def test_discovery_file_lives_as_long_as_the_exporter(tmp_path):
    path = tmp_path / "targets" / "run-0.json"
    exporter = Exporter(discovery=path, labels={"run": "digits"})
    assert json.loads(path.read_text()) == [{"targets": [exporter.address], "labels": {"run": "digits"}}]
    assert [entry.name for entry in path.parent.iterdir()] == ["run-0.json"]
    url = f"http://{exporter.address}/metrics"
    exporter.close()
    exporter.close()
    exporter.update(STEP)
    assert not path.exists()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_a_taken_port_costs_one_warning_and_the_exporter(tmp_path, caplog):
    path = tmp_path / "run-0.json"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        exporter = Exporter(port=taken.getsockname()[1], discovery=path)
    exporter.update(STEP)
    exporter.close()
    assert exporter.address is None
    assert not path.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "observe.exporter_port" in caplog.text


def test_a_discovery_file_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    exporter = Exporter(discovery=tmp_path / "file" / "run-0.json")
    assert exporter.address
    assert "is not announced" in caplog.text
    exporter.close()


def test_an_update_is_cheap(exporter, board):
    """Aim: 50 us for a step, met on an idle machine.  The bound here is loose, since machines that run tests are busy."""
    times, rank = [], board.writer(8)
    for _ in range(300):
        start = time.perf_counter()
        rank.step(SECONDS)
        rank.set("rank_own_seconds", 0.1)
        exporter.update(STEP)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 200e-6
