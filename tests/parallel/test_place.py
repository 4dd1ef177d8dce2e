"""Which rank this process is, from the environments that launchers really make."""

import os
import subprocess
import sys

import pytest

from vitscale.errors import ClusterError
from vitscale.parallel import rank_info
from vitscale.parallel.rank_info import RankInfo, how_started, rank_info_from_environment

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LAUNCHERS = ("SLURM", "OMPI_", "PMI", "MPI_", "MV2_", "JSM_", "PALS_", "PET_", "PBS_", "TORCHELASTIC", "KUBERNETES", "VITSCALE_STORE")
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
         "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Sets exactly these of the launchers' variables."""
    def set_(values):
        for name in list(os.environ):
            if name in NAMES or name.startswith(LAUNCHERS):
                monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
    return set_


def test_started_by_hand(environment):
    environment({})
    assert rank_info_from_environment() is None
    environment({"MASTER_ADDR": "n1"})
    assert rank_info_from_environment() is None


def test_torchrun(environment):
    environment(TORCHRUN)
    assert rank_info_from_environment() == RankInfo(5, 8, 1, 4)


def test_srun(environment):
    environment(SLURM)
    assert rank_info_from_environment() == RankInfo(5, 8, 1, 4)
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,3(x2)"})
    assert rank_info_from_environment() == RankInfo(5, 8, 1, 3)
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,3(x2)", "SLURM_NODEID": "0"})
    assert rank_info_from_environment() == RankInfo(5, 8, 1, 2)


def test_a_shell_on_a_node_is_no_rank(environment):
    """`srun --pty bash`: what is started by hand there starts its ranks itself."""
    environment(SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"})
    assert rank_info_from_environment() is None


def test_the_launcher_inside_a_job_step_is_nearer_than_slurm(environment):
    environment(SLURM | TORCHRUN | {"RANK": "7", "LOCAL_RANK": "3"})
    assert rank_info_from_environment() == RankInfo(7, 8, 3, 4)


@pytest.mark.parametrize("step", [None, "batch", "interactive", ""])
def test_a_batch_script_is_no_rank(environment, step):
    """sbatch's own shell has SLURM_PROCID too; what is started by hand there starts its ranks itself."""
    values = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    environment(values if step is None else values | {"SLURM_STEP_ID": step})
    assert rank_info_from_environment() is None


def test_one_process_of_a_node_each(environment):
    environment({"RANK": "1", "WORLD_SIZE": "2"})
    assert rank_info_from_environment() == RankInfo(1, 2, 0, 1)


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
        rank_info_from_environment()
    assert said in str(error.value)


# Environments as launchers make them: of SLURM 22.05 recorded from the real one, of the others by their documentation and sources
# (torch/distributed/elastic/agent, deepspeed/launcher/launch.py, training-operator's pytorch/envvar.go, orte's schizo, Hydra's
# pmiserv, IBM's jsrun, PBS's mom).
STEP = {"SLURM_JOB_ID": "5", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4",
        "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n2"}
SHELL = STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1",
                "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "n1", "SLURMD_NODENAME": "n1"}     # in an allocation of four
INTERACTIVE = SHELL | {"SLURM_STEP_ID": "4294967290"}
PROXIES = STEP | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}      # one task a node
BATCH = {name: value for name, value in SHELL.items() if "STEP" not in name}
OMPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_COMM_WORLD_NODE_RANK": "1", "OMPI_UNIVERSE_SIZE": "8", "PMIX_RANK": "5"}
HYDRA = {"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_FD": "9", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
JSRUN = {"JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_SIZE": "8", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_LOCAL_SIZE": "4"}
POD = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "vit-master-0", "MASTER_PORT": "23456", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
       "PET_NPROC_PER_NODE": "1", "PET_NNODES": "3"}
DEEPSPEED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2"}
ELASTIC = TORCHRUN | {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "1", "ROLE_RANK": "5"}
ANY = RankInfo(5, 8, 1, 4)


@pytest.mark.parametrize(("values", "place", "told"), [
    (STEP, RankInfo(2, 4, 0, 2), "ranks: 4 of srun step 5.3, this is rank 2 on node n2"),
    (STEP | {"PMI_RANK": "2", "PMI_SIZE": "4", "PMIX_RANK": "2"}, RankInfo(2, 4, 0, 2), "ranks: 4 of srun step 5.3, this is"),  # MpiDefault
    (SHELL, None, "started by hand inside step 3, which has one task, of job 5"),
    (SHELL | {"PMI_RANK": "0", "PMI_SIZE": "1"}, None, "started by hand inside step 3, which has one task, of job 5"),
    (INTERACTIVE, None, "started by hand inside an interactive step of job 5"),
    (INTERACTIVE | {"SLURM_STEP_NUM_TASKS": "4"}, None, "started by hand inside an interactive step of job 5"),
    (BATCH, None, "started by hand inside job 5"),
    ({}, None, "started by hand"),
    (ELASTIC, ANY, "ranks: 8 of torchrun, this is rank 5 on"),
    (PROXIES | ELASTIC, ANY, "ranks: 8 of torchrun, this is rank 5 on"),       # one torchrun a node
    (SHELL | ELASTIC, ANY, "ranks: 8 of torchrun"),
    (DEEPSPEED, ANY, "ranks: 8 of those that RANK and WORLD_SIZE name"),
    (OMPI, ANY, "ranks: 8 of Open MPI, this is rank 5 on"),
    (OMPI | ELASTIC | {"WORLD_SIZE": "16"}, RankInfo(5, 16, 1, 4), "ranks: 16 of torchrun"),     # mpirun of one torchrun a node
    (BATCH | OMPI, ANY, "ranks: 8 of Open MPI"),                # mpirun in a batch script: on its own node there is no step,
    (STEP | {"SLURM_STEP_NUM_TASKS": "1"} | OMPI, ANY, "ranks: 8 of Open MPI"),     # on others there is that of its daemons
    (HYDRA, ANY, "ranks: 8 of MPI, this is rank 5 on"),
    (PROXIES | HYDRA, ANY, "ranks: 8 of MPI"),         # Hydra's proxies are a step
    ({"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4", "PBS_JOBID": "7.pbs"}, ANY, "ranks: 8 of MPI"),
    ({"MV2_COMM_WORLD_RANK": "5", "MV2_COMM_WORLD_SIZE": "8", "MV2_COMM_WORLD_LOCAL_RANK": "1", "MV2_COMM_WORLD_LOCAL_SIZE": "4"}, ANY,
     "ranks: 8 of MVAPICH"),
    (JSRUN, ANY, "ranks: 8 of jsrun"),
    (POD, RankInfo(1, 3, 0, 1), "ranks: 3 of a PyTorchJob, this is rank 1 on"),
    (POD | {"RANK": "0", "WORLD_SIZE": "1", "PET_NNODES": "1", "PET_NPROC_PER_NODE": "auto"}, None, "started by hand"),    # of one pod
    (STEP | {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"},
     RankInfo(2, 4, 0, 2), "ranks: 4 of srun step 5.3"),
    ({"PBS_JOBID": "7.pbs", "PBS_TASKNUM": "1", "PBS_NODENUM": "0"}, None, "started by hand"),
])
def test_every_launcher_by_its_own_facts(environment, values, place, told):
    environment(values)
    found = how_started(os.environ)
    assert found.place == place
    assert found.told.startswith(told)


@pytest.mark.parametrize(("values", "place", "note"), [
    ({"WORLD_SIZE": "4", "MASTER_ADDR": "n1"}, None, "WORLD_SIZE is set but RANK is not"),
    ({"LOCAL_RANK": "0"}, None, "LOCAL_RANK is set but RANK is not"),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None, "RANK=0 and WORLD_SIZE=1 without LOCAL_RANK"),
    (STEP | {"PMI_RANK": "0", "PMI_SIZE": "1"}, RankInfo(2, 4, 0, 2), "PMI_RANK=0 of PMI_SIZE=1 is left over in a step of 4 tasks"),
    (STEP | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, RankInfo(2, 4, 0, 2),
     "OMPI_COMM_WORLD_RANK=1 of OMPI_COMM_WORLD_SI"),
])
def test_what_is_left_over_in_a_shell_is_passed_over_and_named(environment, values, place, note):
    environment(values)
    found = how_started(os.environ)
    assert found.place == place
    assert any(one.startswith(note) for one in found.notes), found.notes


@pytest.mark.parametrize(("values", "said"), [
    ({"RANK": "3"}, "`unset RANK`"),
    (STEP | {"RANK": "0", "WORLD_SIZE": "1"}, "but srun step 5.3 has 4 tasks; left over in a shell they go by `unset RANK"),
    (STEP | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "but srun step 5.3 has 4 tasks"),
    (TORCHRUN | {"LOCAL_RANK": "4"}, "local rank 4 of 4 on this machine"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "local rank 1 of 9 on this machine, of 8 in all"),
    (OMPI | {"OMPI_COMM_WORLD_SIZE": "x"}, "expected OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, "),
    (HYDRA | {"PMI_RANK": "8"}, "rank 8 of 8"),
    (POD | {"PET_NPROC_PER_NODE": "8", "WORLD_SIZE": "24"}, "PET_NPROC_PER_NODE=8: start `torchrun --nnodes=NODES"),
    ({"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "8"}, "PET_NNODES=2 is meant for torchrun"),
    ({"PBS_JOBID": "7.pbs", "PBS_TASKNUM": "2", "PBS_NODENUM": "1"}, "pbsdsh does not say how many"),
])
def test_what_cannot_be_meant_is_refused(environment, values, said):
    environment(values)
    with pytest.raises(ClusterError) as error:
        how_started(os.environ)
    assert said in str(error.value)


@pytest.mark.parametrize("typed", [True, False])
def test_the_shell_of_a_step_of_several_tasks_is_no_rank(environment, monkeypatch, typed):
    """As measured in `srun --pty -n4 bash`, whose shell gives each command a group of its own, and in `srun --pty -n4 python`."""
    environment(STEP | {"SLURM_PTY_PORT": "37451", "SLURM_PROCID": "0"})
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpgrp() + (1 if typed else 0))
    found = how_started(os.environ)
    if typed:
        assert found.place is None
        assert "of whose 4 tasks this one alone has a terminal" in found.told
    else:
        assert found.place is not None
        assert found.place.size == 4


def test_a_pod_of_several_gpus_is_told_what_to_do(environment, monkeypatch):
    environment(POD)
    monkeypatch.setattr(rank_info, "_gpus", lambda env: ["nvidia0", "nvidia1"])
    with pytest.raises(ClusterError, match=r"2 GPUs are here: start `torchrun --nnodes=NODES .* or set CUDA_VISIBLE_DEVICES to the one"):
        how_started(os.environ)
    monkeypatch.undo()
    environment(POD | {"CUDA_VISIBLE_DEVICES": "1"})
    assert rank_info_from_environment() == RankInfo(1, 3, 0, 1)


@pytest.mark.slow       # torchrun imports torch
def test_torchrun_itself_agrees(tmp_path):
    """The real thing, with no torch in the ranks."""
    program = tmp_path / "rank.py"
    program.write_text("import sys\nfrom vitscale.parallel.rank_info import rank_info_from_environment\nassert 'torch' not in sys.modules\n"
                       f"open({str(tmp_path)!r} + f'/{{rank_info_from_environment().rank}}', 'w').write(str(rank_info_from_environment()))")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert told == [str(RankInfo(rank, 2, rank, 2, launcher="torchrun")) for rank in (0, 1)]
