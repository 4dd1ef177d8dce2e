"""A real SLURM of four nodes on this one machine, for the length of a test session: started, asked, and ended without leftovers."""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel", "salloc")
NODES = ("n1", "n2", "n3", "n4")
ADDRESSES = {name: f"127.0.0.{number}" for number, name in enumerate(NODES, 1)}      # each of its own, as in a cluster
REPOSITORY = Path(__file__).parents[2]
WAIT_S = 120        # for what takes seconds, on a loaded machine
JOB_S = 240         # for a job to get somewhere
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")

# The cores, memory and GPUs are lies that SLURM believes (config_overrides).  A job that is requeued is held until its old credential has
# expired: cred_expire is 120 s by default.  NoInAddrAny is not set: it would bind every slurmd to the address of this machine's name, and
# not to its node's.  ReturnToService=1: a node set down stays down.  FirstJobId: ports of jobs follow from their numbers, and two of
# these clusters may run at once.  MessageTimeout: commands wait for it twice before they say that slurmctld does not answer.
# InteractiveStepOptions: salloc's shell without its --pty, since a test has no terminal.
CONFIGURATION = """\
ClusterName=emulated
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
FirstJobId={first_job}
CommunicationParameters=NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/pids/slurmctld.pid
SlurmdPidFile={folder}/pids/%n.pid
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdLogFile={folder}/logs/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=1
MessageTimeout=5
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
LaunchParameters=use_interactive_step
InteractiveStepOptions="--interactive --preserve-env /bin/bash"
KillWait=5
SlurmdTimeout=6
MinJobAge=3600
{nodes}
PartitionName=normal Nodes=n[1-4] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[1-4] PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr={address} Port={port} Sockets=1 CoresPerSocket=16 ThreadsPerCore=1 " \
       "RealMemory=64000 Gres=gpu:8"


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    absent = [program for program in PROGRAMS if _program(program) is None]
    if absent:
        return f"needs SLURM ({', '.join(absent)} not found): apt-get install -y --no-install-recommends slurm-wlm munge"
    return None


class Cluster:
    """slurmctld and four slurmd, with all that they write in a temporary folder.  As root or as any user."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))      # a short path: sockets lie in it
        self.configuration = self.folder / "slurm.conf"
        self.pythonpath = [str(REPOSITORY)]         # of jobs
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For commands of SLURM and, through sbatch, for jobs: this interpreter's programs, this checkout, one thread a rank."""
        foreign = ("SLURM_", "SBATCH_", "PYTEST_", "VENV", "SETUP", "PREFIX", "CONTAINER")     # make hands its own VENV on
        ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
        return {**ours, "SLURM_CONF": str(self.configuration), "PATH": path, "PYTHONPATH": os.pathsep.join(self.pythonpath),
                "OMP_NUM_THREADS": "1", "SLURM_MSG_TIMEOUT": str(WAIT_S)}       # of srun, for the start of tasks on a loaded machine

    def start(self) -> None:
        """Returns when all nodes are idle."""
        folder = self.folder
        for name in ("munge", "state", "spool", "pids", "logs", "gpu"):
            (folder / name).mkdir(mode=0o700)
        (folder / "munge").chmod(0o711)
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(NODE.format(name=name, address=ADDRESSES[name], port=port) for name, port in zip(NODES, ports[1:], strict=True))
        user = pwd.getpwuid(os.getuid()).pw_name
        self.configuration.write_text(CONFIGURATION.format(folder=folder, ports=ports, nodes=nodes, user=user,
                                                           first_job=random.randrange(1, 9000) * 10))
        (folder / "gres.conf").write_text(f"NodeName=n[1-4] Name=gpu File={folder}/gpu/fake[0-7]\n")
        for number in range(8):
            _make_device(folder / "gpu" / f"fake{number}")
        key = folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)

        munge = folder / "munge"
        self._run("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/munge.socket",
                  f"--pid-file={munge}/munged.pid", f"--log-file={munge}/munged.log", f"--seed-file={munge}/munged.seed")
        self.wait_until(lambda: (munge / "munge.socket").exists(), "munged made no socket")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes(NODES)

    def start_controller(self) -> None:
        """Returns when slurmctld answers."""
        self._run("slurmctld", "-D", "-f", str(self.configuration))
        self.wait_until(lambda: self.command("scontrol", "ping", check=False).returncode == 0, "slurmctld does not answer")

    @contextlib.contextmanager
    def without_controller(self, killed: bool) -> Iterator[None]:
        """slurmctld is killed and started again, or it stands still for a while: then requests reach it all the same, and late."""
        if killed:
            daemon = self._daemons.pop("slurmctld")
            daemon.kill()
            daemon.wait()
        else:
            self._daemons["slurmctld"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if killed:
                self.start_controller()
            else:
                self._daemons["slurmctld"].send_signal(signal.SIGCONT)

    def start_node(self, node: str) -> None:
        """Start the slurmd of `node`."""
        self._run("slurmd", "-D", "-f", str(self.configuration), "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """kill -9 its slurmd, as if the machine had lost it; its tasks live on."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def clear(self) -> None:
        """Cancel all jobs, end what they left behind, and have four idle nodes again."""
        self.command("scancel", f"--user={os.getuid()}")
        self.command("scancel", "--signal=KILL", f"--user={os.getuid()}", check=False)
        for node in NODES:
            if node not in self._daemons:
                self.start_node(node)
            self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)    # an error unless it is down
        self.wait_for_nodes(NODES)
        _end(lambda: [pid for pid in self.processes() if _has(pid, "SLURM_JOB_ID=")])

    def stop(self) -> None:
        """End every job, daemon and orphaned task of this cluster, and remove its folder."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()
        _end(self.processes)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self, *variables: str) -> list[int]:
        """Ids of this cluster's living processes, daemons and all, that have every one of `variables` ("NAME=value"); oldest first."""
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        wanted = [pid for pid in found if all(_has(pid, one) for one in (f"SLURM_CONF={self.configuration}", *variables))]
        return sorted(wanted, key=_began)

    def rank(self, job: str, rank: int) -> int:
        """The process id of a rank of the job's present attempt."""
        restarts = int(self.job(job)["Restarts"])
        attempt = [f"SLURM_RESTART_COUNT={restarts}"] if restarts else []
        return self.processes(f"SLURM_JOB_ID={job}", "SLURM_STEP_ID=0", f"SLURM_PROCID={rank}", *attempt)[0]

    def _run(self, program: str, *arguments: str, name: str | None = None) -> None:
        path = _program(program)
        assert path is not None
        with open(self.folder / "logs" / f"{name or program}.out", "ab") as output:
            self._daemons[name or program] = subprocess.Popen(
                [path, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, env=self.environment)

    def command(self, *arguments: str, check: bool = True, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command of SLURM, in `folder`; fails with what it said."""
        done = subprocess.run(arguments, env=self.environment, cwd=folder or self.folder, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}"
        return done

    def sbatch(self, folder: Path, *arguments: str) -> str:
        """Submit from `folder`; returns the job's id."""
        return self.command("sbatch", "--parsable", *arguments, folder=folder).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Restarts, NodeList, BatchHost, Reason, ExitCode ("status:signal"), ..."""
        text = self.command("scontrol", "show", "job", "--oneliner", job).stdout
        return dict(pair.split("=", 1) for pair in text.split() if "=" in pair)

    def wait_for(self, job: str, *states: str, restarts: int | None = None, timeout_s: float = JOB_S) -> dict[str, str]:
        """Until the job is in one of `states` (and has been restarted `restarts` times); fails as soon as it has ended otherwise."""
        deadline, times_ended = time.monotonic() + timeout_s, 0
        while True:
            known = self.job(job)
            if known["JobState"] in states and restarts in (None, int(known["Restarts"])):
                return known
            times_ended = times_ended + 1 if known["JobState"] in ENDED else 0      # for a moment also one that will be requeued
            if times_ended > 10 or time.monotonic() > deadline:
                why = f"job {job} is {known['JobState']} after {known['Restarts']} restarts ({known['Reason']}), not {' or '.join(states)}"
                raise AssertionError(f"{why}\n{known}\n{self._output(known)}{self.logs()}")
            time.sleep(0.3)

    def run(self, folder: Path, *arguments: str, timeout_s: float = JOB_S) -> dict[str, str]:
        """Submit and wait until it has completed."""
        return self.wait_for(self.sbatch(folder, *arguments), "COMPLETED", timeout_s=timeout_s)

    def wait_for_nodes(self, nodes: Iterable[str]) -> None:
        """Until each of them is idle."""
        wanted = set(nodes)

        def idle() -> bool:
            lines = self.command("sinfo", "--noheader", "--Node", "--partition=normal", "--format=%N %t", check=False).stdout.splitlines()
            return wanted <= {line.split()[0] for line in lines if line.split()[1] == "idle"}

        self.wait_until(idle, f"nodes {', '.join(sorted(wanted))} did not become idle")

    def wait_until(self, condition: Callable[[], object], otherwise: str) -> None:
        """Fails with `otherwise` and the logs when it takes too long, or a daemon ends."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            assert not dead, f"{', '.join(dead)} ended\n{self.logs()}"
            assert time.monotonic() < deadline, f"{otherwise}\n{self.logs()}"
            time.sleep(0.1)

    def _output(self, job: dict[str, str]) -> str:
        path = Path(job.get("StdOut", ""))
        return f"\n--- {path}\n{path.read_text(errors='replace')[-6000:]}\n" if path.is_file() else ""

    def logs(self) -> str:
        """The ends of all daemons' logs, and what the commands say of nodes and jobs, for a failed test's message."""
        parts = []
        for command in (("sinfo", "--Node", "--long"), ("squeue", "--states=all")):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                said = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=20)
                parts.append(f"--- {' '.join(command)}\n{said.stdout}{said.stderr}")
        for path in sorted([*(self.folder / "logs").glob("*"), self.folder / "munge" / "munged.log"]):
            if path.is_file() and (text := path.read_text(errors="replace")):
                parts.append(f"--- {path.name}\n" + "\n".join(text.splitlines()[-15:]))
        return "\n".join(["", *parts])


def _program(name: str) -> str | None:
    """Debian puts daemons into /usr/sbin, which is not on a user's path."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def _has(pid: int, variable: str) -> bool:
    """Whether a process of ours lives and has an environment variable whose "NAME=value" begins with `variable`, or is it."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        living = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
    wanted = variable.encode()
    return living and any(one == wanted or (wanted.endswith(b"=") and one.startswith(wanted)) for one in environment)


def _began(pid: int) -> tuple[int, int]:
    """When it began, in ticks since the machine did: the numbers of processes begin anew after pid_max, 32,768 on some machines."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]), pid
    except OSError:     # it has just ended
        return sys.maxsize, pid


def _end(living: Callable[[], list[int]]) -> None:
    """Kill processes until there are none: one that is killed may just have started another."""
    for _ in range(100):
        for pid in (pids := living()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {living()} cannot be ended")


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below those that the kernel gives to outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def _make_device(path: Path) -> None:
    """What stands for a GPU: a character device where we may make one, else a plain file, which SLURM takes too."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        path.touch()
