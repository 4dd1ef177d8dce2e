"""Signals that a real process receives."""

import select
import signal
import subprocess
import sys
import time

import pytest

from vitscale.stopping import STOPPING

LISTEN = """
import sys, time
from vitscale.resilience.signals import listening
with listening() as flag:
    flag.begin()
    print("ready", bool(flag), flag.reason, flush=True)
    try:
        for line in sys.stdin:
            print(bool(flag), flag.reason, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("after", flush=True)
time.sleep(30)
"""


class Listener:
    def __init__(self, shell: str = "exec") -> None:
        self.process = subprocess.Popen(["bash", "-c", f'{shell} "$@"', "bash", sys.executable, "-c", LISTEN], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def read(self) -> str:
        assert select.select([self.process.stdout], [], [], 20)[0], "it says nothing"
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self.read()


@pytest.fixture
def listener():
    listener = Listener()
    assert listener.read() == "ready False None"
    yield listener
    listener.process.kill()
    listener.process.wait()


def test_a_request_to_stop_is_noted_and_ends_nothing_however_often_it_comes(listener):
    assert listener.ask() == "False None"
    for number in [*STOPPING, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM]:
        if number != signal.SIGINT:
            listener.process.send_signal(number)
            assert listener.ask() == f"True {number.name}"
    assert listener.process.poll() is None


def test_nohup_is_respected():
    """A HUP that is ignored from the start stays so, here and in helpers; other requests are heard."""
    listener = Listener("trap '' HUP; exec")
    try:
        assert listener.read() == "ready False None"
        listener.process.send_signal(signal.SIGHUP)
        assert listener.ask() == "False None"
        listener.process.send_signal(signal.SIGUSR1)
        assert listener.ask() == "True SIGUSR1"
    finally:
        listener.process.kill()
        listener.process.wait()


def test_the_second_interrupt_ends_it_at_once(listener):
    listener.process.send_signal(signal.SIGINT)
    assert listener.ask() == "True SIGINT"
    listener.process.send_signal(signal.SIGINT)
    assert listener.read() == "interrupted"


# the last word takes its time, as one does that is written to a disk; what it needs is closed by the main thread's way out
LAST_WORD = """
import sys, time
from vitscale.resilience.signals import listening
is_open = True
def last_word():
    time.sleep(0.5)
    print("last word", is_open, flush=True)
with listening() as flag:
    flag.begin()
    flag.last_word = last_word
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            print(flag.reason, flush=True)
    finally:
        is_open = False
"""


def test_the_last_word_is_said_before_anything_is_closed():
    process = subprocess.Popen([sys.executable, "-c", LAST_WORD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.stdin.write("?\n")
    process.stdin.flush()
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert said == "last word True\n"


def test_afterwards_a_request_comes_too_late(listener):
    listener.process.stdin.close()
    assert listener.read() == "after"
    for number in STOPPING:
        listener.process.send_signal(number)
    time.sleep(0.3)
    assert listener.process.poll() is None


# the first lines stand for start-up; the main thread is inside a library, where no handler of Python's runs
EARLY = """
import hashlib, logging, os, signal, sys
from vitscale.resilience.signals import listening
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
with listening() as flag:
    if "farewell" in sys.argv:
        flag.farewell = lambda sent: print("farewell:", sent, flush=True)
    if "broken" in sys.argv:
        flag.farewell = lambda sent: 1 / 0
    if "fork" in sys.argv:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.write(theirs, b"!")
            signal.pause()
            os._exit(1)
        os.read(ours, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        # to be heard, it would have to come through the pipe that the child shared
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


def early(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", EARLY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert select.select([process.stdout], [], [], 20)[0], "it says nothing"
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOPPING)
def test_before_anybody_reads_the_flag_a_request_ends_the_process_at_once(number):
    process = early()
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert said == f"asked to stop by {number.name} before the first step\n"


def test_there_is_time_for_a_farewell():
    process = early("farewell")
    process.terminate()
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert said.endswith("farewell: SIGTERM\n")


def test_a_farewell_that_fails_keeps_nobody():
    process = early("broken")
    process.terminate()
    assert process.wait(20) == 75


def test_a_request_to_a_forked_helper_is_none_to_us():
    process = early("fork")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        process.communicate()
