"""The command line: one function per command; what a command needs is imported inside it, so that --help is quick."""

import atexit
import contextlib
import errno
import os
import sys
import threading
from typing import NoReturn

from vitscale.cli.app import app
from vitscale.errors import EXIT_REQUEUE, EXIT_WRONG_INPUT, UserError
from vitscale.observe.streams import Results, hold_descriptors, steady

# isort: off
from vitscale.cli import run, jobs, watch, scaling, after, recipes, data, bench  # noqa: F401  (in the order of --help)
# isort: on

_TRAINING = ("train", "sweep")      # what they print is not what they are for
_LOOKING = ("verify", "pack", "stats", "index")     # of data: what is wrong with a set must not end them
_NOBODY_READS = 128 + 13            # the code of a program that SIGPIPE has ended
_FAREWELL_S = 60.0                  # for what libraries do at the end of a process


def main() -> None:
    """Entry point: a user's mistake ends in one clear message and its exit code, never in a traceback."""
    if sys.argv[1:2] == ["data"] and sys.argv[2:3] and sys.argv[2] in _LOOKING:
        from vitscale.data.survive import survive

        if (ended := survive()) is not None:
            sys.exit(ended)
    hold_descriptors()
    steady("stderr")                # what is said there is never worth an end
    results = None
    if sys.argv[1:2] and sys.argv[1] in _TRAINING:
        steady("stdout")
    else:
        results = sys.stdout = Results(sys.stdout)
    code: str | int | None = None
    try:
        app()
    except UserError as error:
        print(f"vitscale: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError:
        if results is None or results.problem is None:
            raise
    except SystemExit as end:
        code = EXIT_REQUEUE if end.code == 130 else end.code        # typer's code for an interrupt from the keyboard
    if results is not None and (problem := results.end()) is not None:
        if problem.errno == errno.EPIPE:        # `| head` has seen enough
            code = _NOBODY_READS
        else:
            print(f"vitscale: standard output: {problem.strerror or problem}; give it another place", file=sys.stderr)
            code = EXIT_WRONG_INPUT
    # Python would take everything apart, under threads that still run: rarely a crash in place of the code, and with torch a second of a
    # core, for which a launcher and the next attempt wait.
    if isinstance(code, int) or code is None:
        _leave(code or 0)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """With this code, whatever libraries do at the end of a process, and however long it takes them."""
    late = threading.Timer(_FAREWELL_S, os._exit, (code,))
    late.daemon = True
    with contextlib.suppress(BaseException):
        late.start()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
