"""Which rank this process is, from the environments that launchers really make."""

import os
import subprocess
import sys

import pytest

from vitscale.errors import ClusterError
from vitscale.parallel.place import Place, place_from_environment

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
         "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Sets exactly these of the launchers' variables."""
    def set_(values):
        for name in list(os.environ):
            if name in NAMES or name.startswith("SLURM"):
                monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
    return set_


def test_started_by_hand(environment):
    environment({})
    assert place_from_environment() is None
    environment({"MASTER_ADDR": "n1"})
    assert place_from_environment() is None


def test_torchrun(environment):
    environment(TORCHRUN)
    assert place_from_environment() == Place(5, 8, 1, 4)


def test_srun(environment):
    environment(SLURM)
    assert place_from_environment() == Place(5, 8, 1, 4)
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,3(x2)"})
    assert place_from_environment() == Place(5, 8, 1, 3)
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,3(x2)", "SLURM_NODEID": "0"})
    assert place_from_environment() == Place(5, 8, 1, 2)


def test_a_shell_on_a_node_is_no_rank(environment):
    """`srun --pty bash`: what is started by hand there starts its ranks itself."""
    environment(SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"})
    assert place_from_environment() is None


def test_the_launcher_inside_a_job_step_is_nearer_than_slurm(environment):
    environment(SLURM | TORCHRUN | {"RANK": "7", "LOCAL_RANK": "3"})
    assert place_from_environment() == Place(7, 8, 3, 4)


@pytest.mark.parametrize("step", [None, "batch", "interactive", ""])
def test_a_batch_script_is_no_rank(environment, step):
    """sbatch's own shell has SLURM_PROCID too; what is started by hand there starts its ranks itself."""
    values = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    environment(values if step is None else values | {"SLURM_STEP_ID": step})
    assert place_from_environment() is None


def test_one_process_of_a_node_each(environment):
    environment({"RANK": "1", "WORLD_SIZE": "2"})
    assert place_from_environment() == Place(1, 2, 0, 2)


@pytest.mark.parametrize(("values", "said"), [
    ({"RANK": "0"}, "WORLD_SIZE"),
    (TORCHRUN | {"RANK": "first"}, "first"),
    (TORCHRUN | {"WORLD_SIZE": ""}, "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE"),
    (TORCHRUN | {"LOCAL_RANK": "0.5"}, "0.5"),
    ({name: value for name, value in SLURM.items() if name != "SLURM_NTASKS"}, "SLURM_NTASKS"),
    (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "four"}, "SLURM_STEP_TASKS_PER_NODE"),
    (TORCHRUN | {"RANK": "8"}, "rank 8 of 8"),
    (TORCHRUN | {"RANK": "-1"}, "rank -1 of 8"),
    (TORCHRUN | {"WORLD_SIZE": "0"}, "rank 5 of 0"),
    (TORCHRUN | {"LOCAL_RANK": "-1"}, "local rank -1"),
])
def test_an_environment_that_is_incomplete_or_contradicts_itself(environment, values, said):
    environment(values)
    with pytest.raises(ClusterError, match="the launcher's environment") as error:
        place_from_environment()
    assert said in str(error.value)


@pytest.mark.slow       # torchrun imports torch
def test_torchrun_itself_agrees(tmp_path):
    """The real thing, with no torch in the ranks."""
    program = tmp_path / "rank.py"
    program.write_text("import sys\nfrom vitscale.parallel.place import place_from_environment\nassert 'torch' not in sys.modules\n"
                       f"open({str(tmp_path)!r} + f'/{{place_from_environment().rank}}', 'w').write(str(place_from_environment()))")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [str(Place(rank, 2, rank, 2)) for rank in (0, 1)]
