"""Starts `python -m vitscale ...` from a process that has imported torch already, as real processes, in a tenth of the time.

    subprocess.Popen = preloaded.Popen       # what it cannot start so, it starts as ever

A server, one per process that starts programs, imports the heavy libraries and vitscale; for each request it forks a process, which
takes its command line, environment, folder, descriptors and signals from the request, becomes a child of the process that asked for it,
and then runs the module as Python does.  It can be signalled, killed, stopped and waited for, and /proc shows its own command line and
environment.  A launcher among them has a server of its own, for its ranks.

What differs from a plain start: sys.modules has the libraries and, unless PYTHONPATH is set, vitscale; Python's hash seed and addresses are
the server's.  Only Linux.
"""

import array
import ctypes
import fcntl
import gc
import importlib
import itertools
import logging
import os
import pickle
import runpy
import signal
import site
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

# What training, evaluating and explaining import of others; each brings many more with it.
LIBRARIES = ("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.nn.attention.flex_attention",
             "torch.utils.flop_counter", "accelerate", "numpy.ctypeslib", "cv2", "PIL.Image", "PIL.PngImagePlugin", "simplejpeg", "msgspec",
             "safetensors.torch", "pydantic.main", "pydantic.type_adapter", "pydantic.json_schema", "typer.rich_utils", "rich.logging",
             "rich.progress", "prometheus_client", "webdataset", "yaml", "filelock", "scipy.stats", "sklearn.datasets", "deepspeed",
             "networkx")
# Of vitscale, what a run imports.  A fork forgets it where it is to import another vitscale, or its own with something done to it.
OURS = ("vitscale.cli", "vitscale.train.start", "vitscale.train.prepare", "vitscale.train.run", "vitscale.parallel.engines")
# Commands that import torch in any case; the others are quick.
COMMANDS = ("train", "eval", "predict", "embed", "explain", "compare", "export", "average", "doctor", "bench")
# Variables that libraries, Python or the loader look at when they are loaded: where one differs from the server's, a start is a plain one.
_AT_LOADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "ACCELERATE_", "CUDA_", "NCCL_", "DS_", "HF_", "LD_",
               "MALLOC_", "MPL", "XDG_", "HOME", "LC_", "LANG", "PYTHON")
_LATER = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES")     # the first a fork heeds itself, the second torch at its first look for devices
_PASSIVE = {"OMP_WAIT_POLICY": "passive"}           # which vitscale sets before it loads torch
_SUBREAPER, _DEATH_SIGNAL = 36, 1                   # of prctl
_ROOM = 1 << 16             # bytes of the server's own environment and arguments, in whose place a fork's are shown
_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}     # Python ignores the last two
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Request:
    """What a process is to become."""

    arguments: list[str]            # those of the module
    environment: dict[str, str]
    folder: str
    keep: tuple[int, ...]           # numbers of the descriptors beyond the first three that it shall have
    new_session: bool
    umask: int
    ignored: tuple[int, ...]        # signals
    blocked: tuple[int, ...]

    @classmethod
    def here(cls, arguments: list[str], environment: dict[str, str], folder: str, keep: Sequence[int], new_session: bool) -> "Request":
        """With the rest as this process has it."""
        with open("/proc/self/status") as status:
            umask = next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
        ignored = (number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_IGN)
        return cls(arguments, environment, folder, tuple(keep), new_session, umask, tuple(map(int, ignored)),
                   tuple(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))


class Server:
    """This process's end of one server."""

    def __init__(self, connection: socket.socket, environment: Mapping[str, str], process: subprocess.Popen | None = None) -> None:
        self._connection, self._environment, self._owner, self._process = connection, dict(environment), os.getpid(), process
        self._one = threading.Lock()

    @classmethod
    def start(cls) -> "Server":
        """With this process's environment, as the tests have it; returns when it has imported everything."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**_PASSIVE, "OMP_NUM_THREADS": "1", **environment}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno()), "-" * _ROOM],
                                       env={**environment, "ROOM": "-" * _ROOM}, pass_fds=(theirs.fileno(),),
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert ours.recv(100) == b"ready", "the server of preloaded processes has ended; see above"
        return cls(ours, environment, process)

    @property
    def is_ours(self) -> bool:
        """A fork of the process that started it has to do without."""
        return os.getpid() == self._owner

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork can have this environment."""
        def looked_at(values: Mapping[str, str]) -> dict[str, str]:
            return {name: value for name, value in values.items() if name.startswith(_AT_LOADING) and name not in _LATER}
        return looked_at({**_PASSIVE, **environment}) == looked_at({**_PASSIVE, **self._environment})

    def fork(self, request: Request, descriptors: Sequence[int]) -> int:
        """Returns the pid of the new process, a child of this one.  `descriptors`: its first three, then those to `keep`."""
        with self._one:
            _libc.prctl(_SUBREAPER, 1, 0, 0, 0)         # who is left alone by its parent becomes our child
            try:
                socket.send_fds(self._connection, [pickle.dumps(vars(request))], descriptors)
                answer = self._connection.recv(100)
            finally:
                _libc.prctl(_SUBREAPER, 0, 0, 0, 0)
        assert answer, "the server of preloaded processes has ended"
        return int(answer)


_server: Server | None = None
_starting = threading.Lock()


def _server_of_this_process() -> Server | None:
    """The one that is there, or a new one; none in a fork of a process that has one."""
    global _server
    with _starting:
        if _server is None:
            _server = Server.start()
        return _server if _server.is_ours else None


class Popen(subprocess.Popen):
    """As subprocess.Popen in every respect but the time that a start of `python -m vitscale` takes."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Sequence[int], cwd: Any, env: Any,
                       *rest: Any) -> None:
        (_, _, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, gid, gids, uid, umask, new_session, group) = rest
        plain = (executable, preexec_fn, gid, gids, uid) == (None,) * 5 and close_fds and not shell and umask < 0 and group == -1
        environment = dict(os.environ if env is None else env)
        folder = os.path.abspath(cwd or ".")
        server = _server_of_this_process() if plain and _is_heavy(args) and os.path.isdir(folder) else None
        if server is None or not server.suits(environment):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        request = Request.here(list(map(str, args[3:])), environment, folder, pass_fds, new_session)
        standard = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self.pid = server.fork(request, [*standard, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _is_heavy(args: Any) -> bool:
    return isinstance(args, list) and args[:3] == [sys.executable, "-m", "vitscale"] and args[3:4] != [] and args[3] in COMMANDS


# From here on: inside the server and its forks.


def _serve(connection: socket.socket) -> tuple[Request, list[int]]:
    """Forks; returns in the forks alone, with what each is to become."""
    while True:
        message, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(256 * array.array("i").itemsize))
        if not message:
            os._exit(0)             # who asks is gone
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        read, write = os.pipe()
        adopted, adopts = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                connection.close()
                os.close(adopts)
                os.read(adopted, 1)     # returns when the server closes its end: from here on the parent is who asked
                return Request(**pickle.loads(message)), list(descriptors)
            os.write(write, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)      # now the child is that of who asked
        os.close(adopts)
        connection.send(os.read(read, 100))
        for descriptor in (read, write, adopted, *descriptors):
            os.close(descriptor)


def _become(request: Request, descriptors: list[int]) -> NoReturn:
    """Take everything from the request, and run the module."""
    for number in _SIGNALS:
        if number in request.ignored:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked)
    if request.new_session:
        os.setsid()
    _take_descriptors(descriptors, (0, 1, 2, *request.keep))
    os.umask(request.umask)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    _show([sys.executable, "-m", "vitscale", *request.arguments], request.environment)
    if "RANK" not in request.environment and any(word.startswith(("parallel.processes=", "--keep-going")) for word in request.arguments):
        _have_a_server(request.environment)
    sys.path[:0] = filter(None, request.environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv[:] = ["-m", *request.arguments]        # as it is at this point of a plain start
    sys.orig_argv[:] = [sys.executable, "-m", "vitscale", *request.arguments]
    if request.environment.get("PYTHONPATH") or os.path.isdir(os.path.join(request.folder, "vitscale")):
        for name in [name for name in sys.modules if name.partition(".")[0] == "vitscale"]:
            del sys.modules[name]
    site.execsitecustomize()
    sys.path.insert(0, request.folder)
    sys.modules["numpy"].random.seed()      # as a new process has it; Python's own does so itself
    runpy.run_module("vitscale", run_name="__main__", alter_sys=True)
    sys.exit(0)


def _take_descriptors(given: list[int], wanted: Sequence[int]) -> None:
    """Those that were given get the numbers that are wanted; all others are closed."""
    apart = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(wanted) + 1) for descriptor in given]
    for number, descriptor in zip(wanted, apart, strict=True):
        os.dup2(descriptor, number)
    _close_all_but(wanted)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())      # type: ignore[union-attr]


def _close_all_but(wanted: Sequence[int]) -> None:
    for last, following in itertools.pairwise([*sorted(wanted), 1 << 16]):      # 0 is among them
        if last + 1 < following:
            os.closerange(last + 1, following)


def _show(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """In /proc, where Linux shows the memory in which the server's own arguments and environment lay, cut to its size."""
    with open("/proc/self/stat") as file:
        begins = list(map(int, file.read().rpartition(")")[2].split()[45:49]))
    shown = [list(arguments), [f"{name}={value}" for name, value in environment.items()]]
    for begin, end, words in zip(begins[::2], begins[1::2], shown, strict=True):
        text = b"".join(os.fsencode(word) + b"\0" for word in words)[:end - begin - 1]
        ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def _have_a_server(environment: Mapping[str, str]) -> None:
    """Before this launcher does anything: a fork of it, which forks its ranks."""
    global _server
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher = os.getpid()
    if os.fork() == 0:
        _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(0)
        ours.close()
        nowhere = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        _close_all_but((0, 1, 2, theirs.fileno()))
        _become(*_serve(theirs))
    theirs.close()
    _server = Server(ours, environment)
    subprocess.Popen = Popen        # type: ignore[misc]


class _Standard:
    """The stream that sys.stdout is when something is written: what a logger takes at its import would be another in each fork."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self._name), name)


def main() -> NoReturn:
    """The server's process."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name, value in list(os.environ.items()):        # out of the memory that forks write over
        os.environ[name] = value
    del os.environ["ROOM"]
    for name in LIBRARIES + OURS:
        importlib.import_module(name)
    for handler in logging.getLogger("DeepSpeed").handlers:
        handler.setStream(_Standard("stdout"))          # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread: forks would be without it"
    sys.modules.pop("sitecustomize", None)
    del sys.path[0]                 # the tests' folder
    gc.collect()
    gc.freeze()
    connection.send(b"ready")
    _become(*_serve(connection))


if __name__ == "__main__":
    main()
