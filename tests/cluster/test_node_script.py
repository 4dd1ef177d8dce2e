"""launch/node.sh on a plain machine: the environment it sets up, and what it says when it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.cluster.script import HOME

SHOW = "import os, sys; print(sys.argv[1:], os.environ.get('OMP_NUM_THREADS'), os.environ.get('SET_UP'), sys.prefix)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a `vitscale` of its own, which prints what reaches it."""
    (tmp_path / "vitscale").mkdir()
    (tmp_path / "vitscale" / "__init__.py").touch()
    (tmp_path / "vitscale" / "__main__.py").write_text(SHOW)
    return tmp_path


def node(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    return subprocess.run(["bash", str(HOME / "launch" / "node.sh"), *arguments], capture_output=True, text=True, cwd=folder, timeout=30,
                          env={"PATH": path, **environment})


def test_words_arrive_as_they_were_given(folder: Path):
    done = node(folder, "train", "a b.yaml", 'data.train="x/{0..3}.tar"', "$(x)", "*", "")
    assert done.stdout.startswith(repr(["train", "a b.yaml", 'data.train="x/{0..3}.tar"', "$(x)", "*", ""]) + " None None ")


def test_setup_prefix_and_threads(folder: Path):
    done = node(folder, "x", SETUP="SET_UP=one; export SET_UP", PREFIX="env SET_UP=two", SLURM_CPUS_PER_TASK="12")
    assert done.stdout.startswith("['x'] 12 two ")
    assert node(folder, "x", SETUP="export SET_UP=one", SLURM_CPUS_PER_TASK="12", OMP_NUM_THREADS="3").stdout.startswith("['x'] 3 one ")


def environment_in(path: Path) -> Path:
    """What `activate` and `python3` of a virtual environment do, as far as it matters here."""
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "activate").write_text(f"export PATH={path}/bin:$PATH\n")
    (path / "bin" / "python3").write_text(f"#!/bin/bash\necho from {path.name}\n")
    (path / "bin" / "python3").chmod(0o755)
    return path


def test_which_environment(folder: Path):
    named = environment_in(folder / "named")
    assert "from" not in node(folder, "x").stdout
    environment_in(folder / ".venv")
    assert node(folder, "x").stdout == "from .venv\n"
    assert node(folder, "x", VENV=str(named)).stdout == "from named\n"
    assert "from" not in node(folder, "x", PREFIX="env").stdout     # a container has an environment of its own


def test_rank_0_speaks_and_the_others_write_it_down(folder: Path):
    assert node(folder, "x", LOGS=str(folder), SLURM_PROCID="0").stdout.startswith("['x']")
    silent = node(folder, "x", LOGS=str(folder), SLURM_PROCID="3")
    assert (silent.stdout, silent.stderr) == ("", "")
    assert (folder / "rank-3.out").read_text().startswith("['x']")


@pytest.mark.parametrize(("environment", "words"), [
    ({"VENV": "/nowhere"}, "n7: VENV is /nowhere, which is no virtual environment here"),
    ({"SETUP": "exit_with_3() { return 3; }; exit_with_3"}, "n7: SETUP failed: exit_with_3"),
])
def test_what_is_missing_is_named_with_the_node(folder: Path, environment: dict[str, str], words: str):
    done = node(folder, "x", SLURMD_NODENAME="n7", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"vitscale: {words}")
    assert done.stderr.count("\n") == 1
