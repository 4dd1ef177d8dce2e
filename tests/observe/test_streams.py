"""A program's standard streams in every way in which they fail, by real pipes, terminals and devices: it goes on and ends as it would."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

# Speaks in all the ways in which the program does, at the start, in the middle and at the end; the test acts between them.
SPEAKER = """
import logging, sys, warnings
from pathlib import Path
from vitscale.observe.streams import hold_descriptors, steady
hold_descriptors(); steady("stdout"); steady("stderr")
from rich.console import Console
from vitscale.observe.console import make_console, setup_logging
folder = Path(sys.argv[1])
setup_logging(make_console(), folder / "speaker.log")
log = logging.getLogger("vitscale.speaker")
def speak(when, times=1):
    for _ in range(times):
        log.info("%s", when)
        print(when), print(when, file=sys.stderr, flush=True)
        make_console().print(when); Console().print(when)
        warnings.warn(when)
        sys.stdout.buffer.write(when.encode() + b"\\n")
def wait_for(name):
    import time
    until = time.monotonic() + 60
    while not (folder / name).exists() and time.monotonic() < until:
        time.sleep(0.01)
speak("start")
(folder / "begun").touch()
wait_for("go")
speak("middle", int(sys.argv[2]))
(folder / "worked").touch()
wait_for("finish")
speak("end")
log.info("last words of the log")
sys.exit(7)
"""


class Speaker:
    def __init__(self, folder: Path, out: int, err: int, times: int = 3, **how: object) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", SPEAKER, str(folder), str(times)], stdout=out, stderr=err, **how)

    def reached(self, name: str) -> None:
        while not (self.folder / name).exists():
            assert self.process.poll() is None, "it ended early"
            try:
                self.process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue

    def go(self, name: str) -> None:
        (self.folder / name).touch()

    def end(self) -> str:
        """Asserts that it ended by itself with its own code; returns its log."""
        self.go("go")
        self.go("finish")
        assert self.process.wait(60) == 7
        text = (self.folder / "speaker.log").read_text()
        assert "last words of the log" in text
        return text


def broken(kind: str, when: str, folder: Path) -> str:
    """Run a speaker whose streams break so, at that moment; returns its log."""
    if kind == "full":
        with open("/dev/full", "wb") as full:
            return Speaker(folder, full.fileno(), full.fileno()).end()
    ours, theirs = pty.openpty() if kind == "terminal" else os.pipe()
    if when == "start":
        os.close(ours)
    speaker = Speaker(folder, theirs, theirs, start_new_session=True)
    os.close(theirs)
    speaker.reached("begun")
    if when == "middle":
        os.close(ours)
    speaker.go("go")
    speaker.reached("worked")
    if when == "end":
        os.close(ours)
    return speaker.end()


@pytest.mark.parametrize(("kind", "when"), [
    ("full", "start"), ("pipe", "middle"), ("terminal", "end"),
    *(pytest.param(*case, marks=pytest.mark.all) for case in (("pipe", "start"), ("pipe", "end"), ("terminal", "middle")))])
def test_a_reader_that_goes_changes_nothing_and_is_missed_once(kind: str, when: str, tmp_path: Path) -> None:
    text = broken(kind, when, tmp_path / "speaker")
    reason = {"full": "No space left on device", "pipe": "Broken pipe", "terminal": "Input/output error"}[kind]
    for name in ("standard output", "standard error"):
        assert text.count(f"{name}: {reason}; what it does not take is lost") == 1, text


@pytest.mark.parametrize("kind", ["pipe", pytest.param("terminal", marks=pytest.mark.all)])
def test_a_reader_that_reads_nothing_is_waited_for_once(kind: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty() if kind == "terminal" else os.pipe()
    speaker = Speaker(tmp_path / "speaker", theirs, theirs, times=2500, start_new_session=True)     # more than any pipe holds
    os.close(theirs)
    assert "nobody takes what it writes; what it does not take is lost" in speaker.end()
    os.close(ours)


def test_a_pipe_that_refuses_to_block_and_is_read_slowly_gets_every_line_in_order(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)      # as ssh and node leave it, for all who share it
    with open(os.devnull, "wb") as nowhere:
        speaker = Speaker(tmp_path / "speaker", nowhere.fileno(), theirs, times=600)
    os.close(theirs)
    speaker.go("go")
    speaker.go("finish")
    with open(ours, "rb") as reader:
        text = reader.read().decode()
    assert speaker.process.wait(60) == 7
    assert [text.splitlines().count(word) for word in ("start", "middle", "end")] == [2, 1200, 2]
    assert text.index("start\n") < text.index("middle\n") < text.index("end\n")


def test_streams_that_are_closed_are_no_file_that_is_opened_later(tmp_path: Path) -> None:
    # a shell closes them, since a parent in Python would hold its own descriptors
    (tmp_path / "program").write_text(SPEAKER.replace('speak("start")', 'mine = open(folder / "mine", "w"); speak("start")'))
    folder = tmp_path / "speaker"
    folder.mkdir()
    for name in ("go", "finish"):
        (folder / name).touch()
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} {tmp_path / 'program'} {folder} 2 <&- >&- 2>&-"], timeout=60)
    assert done.returncode == 7
    assert (folder / "mine").read_bytes() == b""


def test_an_uncaught_error_is_shown_and_ends_with_its_own_code(tmp_path: Path) -> None:
    program = ("from vitscale.observe.streams import steady\nsteady('stdout'); steady('stderr')\n"
               "print('half a line', end='')\nraise ValueError('an error of the program')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "half a line")
    assert "ValueError: an error of the program" in done.stderr
    with open("/dev/full", "wb") as full:
        assert subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, timeout=60).returncode == 1


@pytest.mark.parametrize("command", [["recipes", "schema"], ["--help"]])
def test_what_is_asked_for_ends_quietly_when_nobody_reads_it_and_says_so_where_it_cannot_be_written(command: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    program = [sys.executable, "-m", "vitscale", *command]
    done = subprocess.run(program, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "vitscale: standard output: No space left on device; give it another place\n"


def test_a_library_that_never_ends_does_not_keep_the_exit_code_back() -> None:
    program = ("import atexit, time\nimport vitscale.cli as cli\ncli._FAREWELL_S = 0.3\n"
               "atexit.register(time.sleep, 300)\ncli._leave(75)")
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 75
    program = "import atexit\nimport vitscale.cli as cli\natexit.register(lambda: 1 / 0)\ncli._leave(0)"
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, timeout=60).returncode == 0


def test_no_command_is_taken_apart_at_its_end_under_threads_that_run(tmp_path: Path) -> None:
    """Python's own end, with a thread in the middle of something, has crashed: the code must be the command's all the same."""
    program = ("import sys, threading\nimport vitscale.cli as cli\n"
               "class Told:\n    left = sys.argv.pop()\n    def __del__(self): open(self.left, 'w').close()\n"
               "sys.told = Told()\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\ncli.main()")
    for name, arguments, code in (("done", ["recipes", "list"], 0), ("refused", ["recipes", "check", "nowhere"], 2)):
        left = tmp_path / name
        done = subprocess.run([sys.executable, "-c", program, *arguments, str(left)], capture_output=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert not left.exists()
