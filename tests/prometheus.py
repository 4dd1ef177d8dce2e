"""A real Prometheus over a folder of runs, configured by `vitscale monitor --prometheus`, asked over its API."""

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.observe.prometheus_files import write_prometheus

WAIT_S = 120


def missing() -> str | None:
    """Why no Prometheus can be started here; None if one can."""
    absent = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
    return f"needs Prometheus ({', '.join(absent)} not found): apt-get install -y prometheus" if absent else None


class Prometheus:
    """Scrapes and judges every second, where the files say every 15, so that a test need not wait."""

    def __init__(self, runs: Path, folder: Path) -> None:
        write_prometheus(runs, folder)
        configuration = folder / "prometheus.yml"
        text, times = re.subn(r"(scrape_interval|evaluation_interval): 15s", r"\1: 1s", configuration.read_text())
        assert times == 2
        configuration.write_text(text)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = open(folder / "prometheus.log", "wb")       # noqa: SIM115  closed at the end
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=self._log, stderr=self._log)

    def __enter__(self) -> "Prometheus":
        self.until(self._is_ready, "Prometheus is not ready")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ask(self, path: str, **parameters: Any) -> Any:
        """What the API gives as `data`."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def range(self, expr: str, seconds: float = 60.0) -> list[float]:
        """Every finite point of the last seconds, of all series, as a panel asks for them."""
        now = time.time()
        series = self.ask("query_range", query=expr, start=now - seconds, end=now, step=2)["result"]
        return [value for one in series for _, text in one["values"] if math.isfinite(value := float(text))]

    def value(self, expr: str) -> float | None:
        """Of the one series that `expr` gives now."""
        found = self.ask("query", query=expr)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def until(self, condition: Callable[[], object], otherwise: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self._process.poll() is None, Path(self._log.name).read_text()[-3000:]
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.3)
