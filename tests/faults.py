"""Faults made on purpose in the real program: at a step or around a call, on one rank or on all.

    environment = faults(place, Fault("nan", step=12, until=16, rank=1), Fault("kill", after="vitscale.resilience.skips:remember"))
    process = start(place, *SMALL, "parallel.processes=2", environment=environment)

The program has no hooks for this.  Every Python process that is started with that environment imports this file before anything else
(as `sitecustomize`), and it wraps functions of the program when their modules are imported; so the launcher, other launchers and SLURM
pass faults on without knowing of them.  Imports nothing heavy.
"""

import ctypes
import dataclasses
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr2": signal.SIGUSR2, "freeze": signal.SIGSTOP}
LET_GO = "let-go"


@dataclass(frozen=True)
class Fault:
    """What is to happen, and when: at a step, or before or after a call.

    nan: the rank's logits, and so its loss and gradients, are NaN.  spike: the update of this step has a 1000-fold learning rate, on all
    ranks (else they would hold different weights).  sleep: for `seconds`, before the first forward pass of the step, or around the call.
    block: the same inside a call that does not let go of Python's lock.  hold: until the test has called `let_go`.  raise: an OSError
    (disk full), or with a `text` a RuntimeError of these words.  The others are signals that the process sends to itself.

    nan and spike come each time their batch comes; the others once, also over restarts, unless `always`.
    """

    kind: Literal["nan", "spike", "sleep", "block", "hold", "raise", "kill", "term", "usr2", "freeze"]
    step: int | None = None         # as metrics.jsonl counts: the first batch is step 1, and skipped batches count
    until: int | None = None        # the last step, if there are several
    rank: int | None = None         # None: every rank
    before: str | None = None       # a function or method of the program: "vitscale.checkpoint.store:CheckpointWriter._publish"
    after: str | None = None        # the same, when it has returned
    nth: int = 1                    # which call of it, in one process
    seconds: float = 0.0
    always: bool = False
    text: str = ""

    def __post_init__(self) -> None:
        assert (self.step is not None) + (self.before is not None) + (self.after is not None) == 1, "a step, or one call"
        assert self.kind not in ("nan", "spike") or self.step is not None, f"{self.kind} is of a step"
        assert self.kind != "spike" or self.rank is None, "a spike is of all ranks"


def faults(place: Path, *wanted: Fault) -> dict[str, str]:
    """Environment variables with which the program, started in whatever way, meets these faults.  `place`: a folder of the test's own;
    what has happened there does not happen again."""
    folder = place / "faults"
    folder.mkdir(exist_ok=True)
    listed = json.dumps([dataclasses.asdict(fault) for fault in wanted])
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport faults\nfaults.install({listed!r}, {str(folder)!r})\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def happened(place: Path) -> list[str]:
    """The faults that came so far (of those that come once), as KIND-NUMBER-rank-RANK."""
    return sorted(path.name for path in (place / "faults").glob("*-rank-*"))


def let_go(place: Path) -> None:
    """End every `hold`, and those to come."""
    (place / "faults" / LET_GO).touch()


# From here on: inside the program's processes.


def install(listed: str, folder: str) -> None:
    """Called by sitecustomize."""
    wanted = [_Armed(Fault(**values), number, Path(folder)) for number, values in enumerate(json.loads(listed))]
    patches: dict[str, list[Callable[[ModuleType], None]]] = {}
    at_steps = [armed for armed in wanted if armed.fault.step is not None]
    if at_steps:
        patches["vitscale.train.step"] = [lambda module: setattr(module, "train_step", _faulty(module.train_step, at_steps))]
    for armed in wanted:
        target = armed.fault.before or armed.fault.after
        if target is not None:
            module, _, path = target.partition(":")
            patches.setdefault(module, []).append(lambda module, path=path, armed=armed: _wrap(module, path.split("."), armed))
    for name in patches.keys() & sys.modules.keys():        # a library that was there before
        for patch in patches.pop(name):
            patch(sys.modules[name])
    sys.meta_path.insert(0, _Patcher(patches))


class _Patcher(importlib.abc.MetaPathFinder):
    """Lets the usual finder load a module, then patches it, before anyone can have taken names from it."""

    def __init__(self, patches: dict[str, list[Callable[[ModuleType], None]]]) -> None:
        self.patches = patches

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.patches:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None, f"no module {name}"
        assert spec.loader is not None, name
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for patch in self.patches[name]:
                patch(module)

        spec.loader.exec_module = exec_module       # type: ignore[method-assign]
        return spec


class _Armed:
    """One fault in one process."""

    def __init__(self, fault: Fault, number: int, folder: Path) -> None:
        self.fault = fault
        self.mine = fault.rank is None or _rank() == fault.rank
        self._marker = folder / f"{fault.kind}-{number}-rank-{_rank()}"
        self._calls = 0

    def at(self, step: int) -> bool:
        assert self.fault.step is not None
        return self.mine and self.fault.step <= step <= (self.fault.until or self.fault.step)

    def at_call(self) -> bool:
        self._calls += 1
        return self.mine and self._calls == self.fault.nth

    def strike(self) -> None:
        """Of the faults that are not made of numbers."""
        if not self.fault.always:
            try:
                self._marker.touch(exist_ok=False)      # durable enough: the machine is not switched off
            except FileExistsError:
                return
        if self.fault.kind == "sleep":
            time.sleep(self.fault.seconds)
        elif self.fault.kind == "block":
            ctypes.PyDLL(None).sleep(int(self.fault.seconds))
        elif self.fault.kind == "hold":
            while not self._marker.with_name(LET_GO).exists():
                time.sleep(0.05)
        elif self.fault.kind == "raise":
            raise RuntimeError(self.fault.text) if self.fault.text else OSError(28, "No space left on device")
        else:
            os.kill(os.getpid(), SIGNALS[self.fault.kind])


def _rank() -> int:
    """As vitscale's launcher, torchrun or SLURM say; a process on its own is rank 0."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _faulty(train_step: Callable[..., Any], wanted: Sequence[_Armed]) -> Callable[..., Any]:
    def step(engine: Any, batch: Any, *arguments: Any, **named: Any) -> Any:
        present = [armed for armed in wanted if armed.at(batch.step + 1)]
        if not present:
            return train_step(engine, batch, *arguments, **named)
        kinds = {armed.fault.kind for armed in present}
        forward, set_lr = engine.forward, engine.set_lr
        waiting = [armed for armed in present if armed.fault.kind not in ("nan", "spike")]

        def faulty_forward(*inputs: Any) -> Any:
            while waiting:
                waiting.pop().strike()
            output = forward(*inputs)
            return _spoiled(output) if "nan" in kinds else output

        engine.forward = faulty_forward
        if "spike" in kinds:
            engine.set_lr = lambda lr: set_lr(1000 * lr)
        try:
            return train_step(engine, batch, *arguments, **named)
        finally:
            engine.forward, engine.set_lr = forward, set_lr

    return step


def _spoiled(output: Any) -> Any:
    """NaN for every number of what a model gives: a tensor, or several."""
    return type(output)(map(_spoiled, output)) if isinstance(output, (tuple, list)) else output * float("nan")


def _wrap(module: ModuleType, path: Sequence[str], armed: _Armed) -> None:
    owner: Any = module
    for name in path[:-1]:
        owner = getattr(owner, name)
    function = getattr(owner, path[-1])

    def wrapped(*arguments: Any, **named: Any) -> Any:
        now = armed.at_call()
        if now and armed.fault.before:
            armed.strike()
        result = function(*arguments, **named)
        if now and armed.fault.after:
            armed.strike()
        return result

    setattr(owner, path[-1], wrapped)
