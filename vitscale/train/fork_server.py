"""Many small runs from one process: torch is imported once, and each run is a fork of it.

Importing torch takes seconds of a core, more than many a run of a sweep.  No thread runs and no device is touched before a fork.
Requests come on stdin, a JSON object a line: {id, recipe, log, environment}.  Answers go to stdout: {ready}, {id, pid}, {id, code}.
"""

import atexit
import contextlib
import ctypes
import json
import os
import selectors
import signal
import sys
import traceback
from typing import Any

from vitscale.errors import EXIT_FAILED, UserError

POLL_S = 0.05


def serve() -> None:
    """Fork runs until stdin ends; then those that still run are asked to save and stop."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import vitscale.train.run

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                       # whatever else prints

    def answer(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    answer(ready=vitscale.train.run.__name__)
    living: dict[int, str] = {}
    buffer, ended = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while living or not ended:
            if not ended and selector.select(POLL_S):
                part = os.read(0, 1 << 16)
                if not part:
                    ended = True
                    selector.unregister(0)
                    for pid in living:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
                *lines, buffer = (buffer + part).split(b"\n")
                for line in lines:
                    asked = json.loads(line)
                    pid = os.fork()
                    if pid == 0:
                        _run(asked)
                    living[pid] = asked["id"]
                    answer(id=asked["id"], pid=pid)
            if living:
                pid, status = os.waitpid(-1, 0 if ended else os.WNOHANG)
                if pid:
                    with contextlib.suppress(BrokenPipeError):
                        answer(id=living.pop(pid), code=os.waitstatus_to_exitcode(status))


def _run(asked: dict[str, Any]) -> None:
    """In the child: become `vitscale train RECIPE`, as cli.main is it, and never return."""
    code = EXIT_FAILED
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)      # PR_SET_PDEATHSIG: not to outlive the sweep
        nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(asked["environment"])
        sys.argv = ["vitscale", "train", asked["recipe"]]
        from vitscale.resilience.signals import listening
        from vitscale.train.start import train

        with listening() as stop:
            code = train(asked["recipe"], [], False, False, stop)
    except UserError as error:
        print(f"vitscale: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
