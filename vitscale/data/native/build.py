"""Compiles the native code into this folder.  By hand: `python vitscale/data/native/build.py`; the installation does it too (hook.py).

Stands alone: it is run before there is a vitscale to import.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "_crop.abi3.so"                  # for every Python from 3.11 on
_SOURCES = ("entropy.c", "resize.c", "crop.c", "pixels.c", "module.c")


def digest() -> str:
    """Of the sources: a build says from which it came."""
    names = sorted(path for path in HERE.iterdir() if path.suffix in (".c", ".h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in names)).hexdigest()[:16]


def linked(compiler: Sequence[str]) -> str:
    """The file name, with the whole version, of the libjpeg that the compiler links: the decoder knows the insides of that one alone."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    told = subprocess.run([*compiler, f"-print-file-name=libjpeg.{suffix}"], capture_output=True, text=True)
    return Path(told.stdout.strip()).resolve().name


def build(into: Path = HERE, flags: Sequence[str] = ()) -> str:
    """Compile into a folder; -> "" or, in the compiler's words, why it could not be done.  flags: for the compiler, after its own."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        compiler = ["cc"]
        if shutil.which("cc") is None:
            return "there is no C compiler"
    unfinished = into / f".{NAME}.{os.getpid()}"
    sources = [str(HERE / source) for source in _SOURCES]
    command = [*compiler, "-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-fPIC",
               "-shared", "-fvisibility=hidden",
               f'-DSOURCES="{digest()}"', f'-DLIBRARY="{linked(compiler)}"', *flags,
               f"-I{sysconfig.get_paths()['include']}", *sources, "-ljpeg", "-lm", "-o", str(unfinished)]
    if sys.platform == "darwin":
        command += ["-undefined", "dynamic_lookup"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip() or f"{compiler[0]} ended with code {done.returncode}"
        os.replace(unfinished, into / NAME)         # a process that has the old one loaded keeps it
    finally:
        unfinished.unlink(missing_ok=True)
    return ""


if __name__ == "__main__":
    sys.exit(build() or None)
