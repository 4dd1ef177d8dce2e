"""What the operating system says of a file or folder is what the user is told, wherever among the data it happens, and no other story."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_descriptors import make_shards

from vitscale.data import ShardReader, open_index
from vitscale.data.bad import BadSample
from vitscale.data.labels import LabelRule
from vitscale.errors import UserError

STORIES = ("gone", "do not exist", "no such shard", "no file matches", "no tar", "run `vitscale data index`")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def broken_disk(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/mem")       # reading its first bytes is an input/output error, for real


def closed(path: Path) -> None:
    path.chmod(0)


CAUSES = {errno.ELOOP: loop, errno.EISDIR: folder, errno.EIO: broken_disk, errno.EACCES: closed}


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Rights hold root back from nothing."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shards() -> Iterator[Path]:
    """A folder with an index, all of which anybody may read; pytest's own are closed to others."""
    place = Path(tempfile.mkdtemp(prefix="vitscale-test-"))
    make_shards(place, "a", 3)
    open_index(f"{place}/a-*.tar", str(place / "index"))
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755)
    yield place
    place.chmod(0o755)
    shutil.rmtree(place)


def sidecar(place: Path) -> Path:
    return next((place / "index").glob("a-00001.tar-*"))


def set_file(place: Path) -> Path:
    return next((place / "index").glob("set-*.json"))


def shard(place: Path) -> Path:
    return place / "a-00001.tar"


def opened(place: Path) -> None:
    open_index(f"{place}/a-*.tar", str(place / "index"))


def read(place: Path) -> None:
    ShardReader(open_index(f"{place}/a-*.tar", str(place / "index"), check=False)).read(1, 0)


def named_one_by_one(place: Path) -> None:
    open_index([f"{place}/a-0000{number}.tar" for number in range(3)], str(place / "index"))


def class_map(place: Path) -> None:
    LabelRule.of("cls", str(shard(place)), False)


PLACES: list[tuple[str, Callable[[Path], Path], Callable[[Path], None], tuple[int, ...]]] = [
    ("a sidecar", sidecar, read, (errno.ELOOP, errno.EISDIR, errno.EACCES)),
    ("the set file", set_file, opened, (errno.ELOOP, errno.EISDIR, errno.EIO)),     # one of another user's is made anew
    ("a shard that is read", shard, read, (errno.ELOOP, errno.EACCES)),
    ("a shard that is looked for", shard, named_one_by_one, (errno.ELOOP,)),
    ("the folder of shards, listed", lambda place: place, opened, (errno.EACCES,)),
    ("the folder of shards, not listed", lambda place: place, named_one_by_one, (errno.EACCES,)),
    ("a class map", shard, class_map, (errno.ELOOP, errno.EISDIR, errno.EIO, errno.EACCES)),
]


@pytest.mark.parametrize(("where", "act", "code"), [pytest.param(where, act, code, id=f"{name}-{errno.errorcode[code]}")
                                                    for name, where, act, codes in PLACES for code in codes])
def test_it_is_named(where, act, code: int, shards: Path) -> None:
    if act is read:
        open_index(f"{shards}/a-*.tar", str(shards / "index"))
    CAUSES[code](where(shards))
    with as_nobody() if code == errno.EACCES else contextlib.nullcontext(), pytest.raises((UserError, BadSample)) as caught:
        act(shards)
    said = str(caught.value)
    assert os.strerror(code) in said
    assert not [story for story in STORIES if story in said], said
