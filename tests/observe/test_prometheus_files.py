"""What `vitscale monitor RUNS --prometheus DIR` writes, for Prometheus' own checker; and what it says of folders that will not do."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from vitscale.cli import app
from vitscale.errors import ClusterError
from vitscale.observe.prometheus_files import write_prometheus
from vitscale.observe.targets import FOLDER, target_file, withdraw


def announce(run: Path, node: str) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    path = target_file(run, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"targets": ["127.0.0.1:1"], "labels": {"run": run.name}}]))
    return path


def test_all_is_written_and_prometheus_takes_it(tmp_path: Path) -> None:
    runs, out = tmp_path / "my runs", tmp_path / "out"
    runs.mkdir()
    done = CliRunner().invoke(app, ["monitor", str(runs), "--prometheus", str(out)])
    assert done.exit_code == 0, done.output
    assert f"--config.file={out / 'prometheus.yml'}" in done.output
    (scrape,) = yaml.safe_load((out / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"] == [f"{runs / FOLDER}/*.json"]
    assert (runs / FOLDER).is_dir()
    assert len(list((out / "grafana" / "dashboards").glob("*.json"))) == 4
    provider = yaml.safe_load((out / "grafana" / "provisioning" / "dashboards" / "vitscale.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == str(out / "grafana" / "dashboards")
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    check = subprocess.run(["promtool", "check", "config", str(out / "prometheus.yml")], capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stdout + check.stderr


def test_folders_of_runs_inside_are_followed_too(tmp_path: Path) -> None:
    announce(tmp_path / "sweep" / "one", "n1")
    write_prometheus(tmp_path, tmp_path / "out")
    (scrape,) = yaml.safe_load((tmp_path / "out" / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"] == [f"{tmp_path / FOLDER}/*.json", f"{tmp_path / 'sweep' / FOLDER}/*.json"]


def test_announcements_of_runs_that_were_deleted_go_and_others_stay(tmp_path: Path) -> None:
    kept, gone = announce(tmp_path / "kept", "n1"), announce(tmp_path / "gone", "n1")
    (tmp_path / "gone").rmdir()
    lines = write_prometheus(tmp_path, tmp_path / "out")
    assert kept.exists()
    assert not gone.exists()
    assert any("removed 1 announcement" in line for line in lines)


def test_a_new_attempt_withdraws_what_a_killed_one_left_on_other_nodes(tmp_path: Path) -> None:
    mine, also, other = announce(tmp_path / "a", "n1"), announce(tmp_path / "a", "n2"), announce(tmp_path / "a.b", "n1")
    withdraw(tmp_path / "a")
    assert (mine.exists(), also.exists(), other.exists()) == (False, False, True)


def test_a_nodes_name_makes_no_path(tmp_path: Path) -> None:
    assert target_file(tmp_path / "a", "../../x y").parent == tmp_path / FOLDER


def test_folders_that_will_not_do_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"absent: no such folder; name the folder that runs are made in"):
        write_prometheus(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "metrics.jsonl").touch()
    with pytest.raises(ClusterError, match=r"this is one run's; name the folder of all runs, .*/runs$"):
        write_prometheus(tmp_path / "runs" / "one", tmp_path / "out")
    (tmp_path / "star*").mkdir()
    with pytest.raises(ClusterError, match="rename that folder"):
        write_prometheus(tmp_path / "star*", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="choose another folder"):
        write_prometheus(tmp_path / "runs", tmp_path / "file")
