"""The command line: one function per command; what a command needs is imported inside it, so that --help is quick."""

import atexit
import os
import sys

from vitscale.cli.app import app
from vitscale.errors import EXIT_REQUEUE, UserError

# isort: off
from vitscale.cli import run, jobs, watch, scaling, after, recipes, data, bench  # noqa: F401  (in the order of --help)
# isort: on


def main() -> None:
    """Entry point: a user's mistake ends in one clear message and its exit code, never in a traceback."""
    code: str | int | None = None
    try:
        app()
    except UserError as error:
        print(f"vitscale: {error}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as end:
        code = EXIT_REQUEUE if end.code == 130 else end.code        # typer's code for an interrupt from the keyboard
    if "torch" in sys.modules and isinstance(code, int):
        # Python would take apart all that torch has imported: a second of a core, for which a launcher and the next attempt wait.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
