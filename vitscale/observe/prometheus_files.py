"""What `vitscale monitor RUNS --prometheus DIR` writes: a Prometheus for a folder of runs, and Grafana's files.  Needs no torch."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from vitscale.cluster.status import MARKS
from vitscale.counts import plural
from vitscale.errors import ClusterError
from vitscale.observe import grafana, targets

_CHECKOUT = Path(__file__).resolve().parent.parent.parent / "launch"
_INSTALLED = Path(__file__).resolve().parent.parent / "_shipped" / "launch"
MONITORING = (_INSTALLED if _INSTALLED.is_dir() else _CHECKOUT) / "monitoring"      # a wheel carries it inside the package
RULES = ("recording.yml", "alerts.yml")


def write_prometheus(runs: Path, out: Path) -> list[str]:
    """Writes prometheus.yml, its rules and grafana/ into `out`; returns what a person is to be told.

    Announcements of runs that are no more are removed.  Raises ClusterError where there is no such folder, or it cannot be written.
    """
    if not runs.is_dir():
        raise ClusterError(f"{runs}: no such folder; name the folder that runs are made in (runs_dir of the recipe)")
    if any((runs / name).exists() for name in MARKS):
        raise ClusterError(f"{runs}: this is one run's; name the folder of all runs, {runs.resolve().parent}")
    runs, out = runs.resolve(), out.resolve()
    if re.search(r"[*?\[\]\\]", str(runs)):
        raise ClusterError(f"{runs}: Prometheus reads * ? [ ] \\ in a path as a pattern; rename that folder")
    try:
        followed = _folders(runs)
        for folder in followed:
            folder.mkdir(parents=True, exist_ok=True)       # Prometheus watches only a folder that is there
        written = {"prometheus.yml": configuration([f"{folder}/*.json" for folder in followed])}
        written |= {name: (MONITORING / name).read_text(encoding="utf-8") for name in RULES}
        written |= {f"grafana/{name}": text for name, text in grafana.files(str(out / "grafana" / "dashboards"))}
        for name, text in written.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"{error.filename or out}: {error.strerror or error}; choose another folder, or make room there") from None
    gone = [path for folder in followed for path in folder.glob("*.json") if not (folder.parents[1] / path.name.partition("@")[0]).is_dir()]
    for path in gone:
        path.unlink(missing_ok=True)
    return [
        f"wrote prometheus.yml, {', '.join(RULES)} and grafana/ into {out}",
        *([f"removed {plural(len(gone), 'announcement')} of runs that are no more"] if gone else []),
        f"start Prometheus:  prometheus --config.file={out / 'prometheus.yml'} --storage.tsdb.path={out / 'data'} "
        "--web.listen-address=127.0.0.1:9090",
        f"for Grafana: GF_PATHS_PROVISIONING={out / 'grafana' / 'provisioning'}, or import {out / 'grafana' / 'dashboards'}/*.json",
    ]


def configuration(patterns: Sequence[str]) -> str:
    """prometheus.yml with these patterns of file_sd files."""
    scrape = {"job_name": "vitscale", "file_sd_configs": [{"files": list(patterns), "refresh_interval": "15s"}]}
    value = {"global": {"scrape_interval": "15s", "evaluation_interval": "15s"}, "rule_files": list(RULES), "scrape_configs": [scrape]}
    return ("# Each node of a run announces its exporter in the files that are named here, and withdraws it when it ends.\n"
            "# To be told of alerts, add alerting: alertmanagers: of your own.\n" + yaml.safe_dump(value, sort_keys=False))


def _folders(runs: Path) -> list[Path]:
    """Where exporters announce themselves: for the runs of the folder itself, and of the folders of runs (sweeps) in it now."""
    inner = sorted(path for path in runs.iterdir() if (path / targets.FOLDER).is_dir())
    return [runs / targets.FOLDER, *(path / targets.FOLDER for path in inner)]
