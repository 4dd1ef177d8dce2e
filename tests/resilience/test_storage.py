"""File systems that hiccup: errors that pass are waited for on the path of a start and of a step, lasting ones said in one sentence.

The errors are real to the program: a library loaded before all others makes the calls below a folder fail (tests/storage_faults.c).
"""

import errno
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import SMALL, TIMEOUT_S, Run, same_as, start

from vitscale import files
from vitscale.errors import EXIT_REQUEUE, StorageError

TESTS = Path(__file__).parents[1]
PASSING = [errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN]
CALLS = ["open", "list", "stat", "rename", "link", "unlink", "mkdir", "read", "write", "fsync"]
OPERATIONS = ["take the run folder", "check the lease", "write a file", "sync a tree", "tell the outcome", "remember skips",
              "read the recipe", "index shards", "read samples", "read open shards", "save a checkpoint",
              "find a checkpoint"]
Case = tuple[str, str, int, int]        # operation, calls, errno, for so many ms (-1: for good)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("library") / "storage_faults.so"
    done = subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", "-o", str(built), str(TESTS / "storage_faults.c"), "-ldl"],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the faults cannot be compiled here: {done.stderr}")
    return built


def outcomes(cases: list[Case], library: Path, folder: Path) -> list[dict[str, Any]]:
    """What came of each case, all in one process."""
    done = subprocess.run([sys.executable, str(TESTS / "storage_ops.py"), str(folder), json.dumps(cases)], capture_output=True, text=True,
                          env=os.environ | {"LD_PRELOAD": str(library)}, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_all_well(cases: list[Case], library: Path, folder: Path) -> None:
    """Each case gives what its operation gives where nothing fails."""
    undisturbed = [(name, "", 0, 0) for name in OPERATIONS]
    came = outcomes([*undisturbed, *cases], library, folder)
    expected = dict(zip(OPERATIONS, came, strict=False))
    assert all("value" in value for value in expected.values()), expected
    wrong = {case: value for case, value in zip(cases, came[len(OPERATIONS):], strict=True) if value != expected[case[0]]}
    assert wrong == {}


@pytest.mark.slow       # waits for each of the errors to pass
def test_an_error_that_passes_is_waited_for(library: Path, tmp_path: Path) -> None:
    """Every operation, each with two of the errors."""
    turns = itertools.cycle(PASSING)
    assert_all_well([(name, "*", next(turns), 120) for name in OPERATIONS for _ in range(2)], library, tmp_path)


@pytest.mark.all
def test_every_error_that_passes_in_every_call(library: Path, tmp_path: Path) -> None:
    """But EAGAIN of a read: files that were opened to block never give it (POSIX, read), and Python makes None of it, not an error."""
    assert_all_well([(name, calls, error, 60) for name in OPERATIONS for calls in ["*", *CALLS] for error in PASSING
                     if (calls, error) != ("read", errno.EAGAIN)], library, tmp_path)


@pytest.mark.slow
def test_an_error_that_lasts_is_one_sentence_and_75(library: Path, tmp_path: Path) -> None:
    """What is read has no excuse; what only tells (the outcome) goes to the log."""
    cases: list[Case] = [(name, "*", errno.EIO, -1) for name in OPERATIONS if name != "tell the outcome"]
    for (name, *_), came in zip(cases, outcomes(cases, library, tmp_path), strict=True):
        if name == "read open shards":
            assert came == {"value": "storage"}         # one sample's trouble, until there are too many
            continue
        assert came.get("exit_code") == EXIT_REQUEUE, (name, came)
        assert str(tmp_path) in came["said"], name
        assert "Input/output error" in came["said"], name
        assert "\n" not in came["said"], name


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT, errno.EMFILE])
def test_an_error_that_means_something_is_not_waited_for(error: int, tmp_path: Path) -> None:
    tries = []

    def act() -> None:
        tries.append(1)
        raise OSError(error, os.strerror(error))

    with pytest.raises(OSError) as raised:      # noqa: PT011  its number is looked at
        files.patiently(tmp_path, act)
    assert raised.value.errno == error
    assert not isinstance(raised.value, StorageError)
    assert len(tries) == 1


def test_the_error_goes_to_other_ranks_as_it_is() -> None:
    error = StorageError(errno.ESTALE, "Stale file handle, again and again", "/runs/a/lease")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == (
        "/runs/a/lease: Stale file handle, again and again; see to the file system, then run the same command again")
    assert (again.exit_code, again.facts["cause"], again.errno) == (EXIT_REQUEUE, "disk", errno.ESTALE)


@pytest.mark.slow       # two whole runs
def test_a_run_whose_file_system_fails_for_a_moment_and_one_where_it_stays_away(library: Path, place: Path, unbroken: Run) -> None:
    """Half a second without any of its run folder's files in the middle of training; and for good."""
    started = {}
    for name, milliseconds in {"moment": 500, "good": -1}.items():
        fault = f"{place / 'runs' / name}|*|{errno.EIO}|{milliseconds}|{place / name}"
        started[name] = start(place, *SMALL, "duration=60 steps", f"name={name}", "resilience.hang_timeout=120",
                              environment={"LD_PRELOAD": str(library), "STORAGE_FAULT": fault})
    output = {}
    try:
        for name, process in started.items():
            Run(place / "runs" / name).wait_for_step(10, process)
            (place / name).touch()
        for name, process in started.items():
            output[name], _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        for process in started.values():
            process.kill()
    assert started["moment"].returncode == 0, output["moment"]
    same_as(unbroken, Run(place / "runs" / "moment"))
    assert started["good"].returncode == EXIT_REQUEUE, output["good"]
    assert "Traceback" not in output["good"]
    assert "Input/output error, again and again; see to the file system" in output["good"]
