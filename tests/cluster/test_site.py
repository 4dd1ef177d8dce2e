"""cluster.yaml: found where it may lie, every mistake at once, no value that could become another line of a script."""

from pathlib import Path

import pytest

from vitscale.cluster.script import HOME
from vitscale.cluster.site import Site, find_site, limit_hours
from vitscale.errors import ClusterError


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_the_example_says_what_the_defaults_are():
    assert find_site(HOME / "slurm" / "cluster.yaml") == (Site(), HOME / "slurm" / "cluster.yaml")


def test_every_key_of_the_example_exists_and_none_is_missing(tmp_path: Path):
    lines = (HOME / "slurm" / "cluster.yaml").read_text().splitlines()
    keys = [line.lstrip("# ").partition(":")[0] for line in lines if ": " in line and not line.startswith("# What")]
    assert keys == list(Site.model_fields)
    uncommented = "\n".join(line.removeprefix("# ") for line in lines if not line.startswith(("# What", "# Every")))
    site, _ = find_site(written(tmp_path, uncommented))
    assert site.account == "vision"
    assert site.directives == ("--constraint=ib", "--reservation=friday")


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert find_site(None) == (Site(), None)
    (tmp_path / "config" / "vitscale").mkdir(parents=True)
    written(tmp_path / "config" / "vitscale", "nodes: 2")
    assert find_site(None)[0].nodes == 2
    (tmp_path / "slurm").mkdir()
    written(tmp_path / "slurm", "nodes: 3")
    assert find_site(None)[0].nodes == 3
    assert find_site(written(tmp_path, "nodes: 4"))[0].nodes == 4


def test_every_mistake_at_once(tmp_path: Path):
    path = written(tmp_path, 'partitoin: gpu\nnodes: two\ntime: "1 day"\nsignal_lead: 5\ngpu: H300\naccount: "a b"')
    with pytest.raises(ClusterError) as caught:
        find_site(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: 6 mistakes"
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["partitoin"].startswith("is no key of a site; the keys are account, partition, qos, nodes,")
    assert said["partitoin"].endswith("(did you mean partition?)")
    assert said["nodes"] == "wants a whole number, got 'two'"
    assert said["signal_lead"] == "wants a number >= 30, got 5"
    assert said["gpu"].startswith("wants one of A100,")
    assert "got '1 day'" in said["time"]
    assert "got 'a b'" in said["account"]


@pytest.mark.parametrize("text", [
    'account: "x\\n#SBATCH --nodes=99"', 'partition: "--wrap=x"', 'setup: "true\\nrm -rf x"', 'prefix: "a\\u2028b"', 'container: ""',
    'directives: ["--comment=a b"]', 'directives: ["-N 5"]', 'directives: ["--comment=a\\n"]', 'network_interface: "ib0; x"',
    'time: "24:00"', 'time: "01:99:00"', "gpus_per_node: -1", "nodes: 0", "price_per_gpu_hour: -1", "qos: 5", "requeue: 1",
])
def test_what_is_refused(text: str, tmp_path: Path):
    with pytest.raises(ClusterError, match=r"cluster\.yaml: 1 mistake\n"):
        find_site(written(tmp_path, text))


@pytest.mark.parametrize("text", ["", "- a", "a: b: c", "nodes: 1\nnodes: 2", "\0", "x" * 10_000])
def test_what_is_no_such_file(text: str, tmp_path: Path):
    with pytest.raises(ClusterError, match=r"cluster\.yaml"):
        find_site(written(tmp_path, text))
    with pytest.raises(ClusterError, match=r"nowhere\.yaml: cannot be read"):
        find_site(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("time", "hours"), [("00:30:00", 0.5), ("24:00:00", 24), ("2-12:00:36", 60.01)])
def test_the_time_limit_in_hours(time: str, hours: float):
    assert limit_hours(Site(time=time)) == pytest.approx(hours)
