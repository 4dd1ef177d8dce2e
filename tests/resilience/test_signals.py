"""Signals that a real process receives."""

import select
import signal
import subprocess
import sys

import pytest

LISTEN = """
import sys, time
from vitscale.resilience.signals import listening
with listening() as flag:
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
    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_request_to_stop_is_noted_and_ends_nothing(number, listener):
    assert listener.ask() == "False None"
    listener.process.send_signal(number)
    assert listener.ask() == f"True {number.name}"
    assert listener.process.poll() is None


def test_requests_may_repeat_themselves(listener):
    for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
        listener.process.send_signal(number)
        assert listener.ask() == f"True {number.name}"


def test_the_second_interrupt_ends_it_at_once(listener):
    listener.process.send_signal(signal.SIGINT)
    assert listener.ask() == "True SIGINT"
    listener.process.send_signal(signal.SIGINT)
    assert listener.read() == "interrupted"


def test_afterwards_signals_mean_what_they_meant(listener):
    listener.process.stdin.close()
    assert listener.read() == "after"
    listener.process.send_signal(signal.SIGUSR2)
    assert listener.process.wait(10) == -signal.SIGUSR2
