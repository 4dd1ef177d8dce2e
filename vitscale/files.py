"""Files that survive a crash: written beside, made durable, then renamed; and their sha256."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename is not until its folder is synced)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes, durable: Literal["name", "content", "no"] = "name") -> None:
    """Replace `path` by `content`, text as UTF-8, as one step: a reader sees the old or the new content, never a part.

    durable: what a machine that fails right after it cannot undo.  name: the replacement; content: nothing, but whichever of the two is
    found is whole; no: after such a failure, not of a process, it may be empty.
    Raises OSError, with nothing left behind.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")       # other nodes have the same process ids
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable != "no":
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if durable == "name":
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below, and the folder itself, durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)
