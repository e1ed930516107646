"""Ctrl-C ends a command with one line and exit code 130, wherever it arrives."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gnp_scale.resilience.interrupts import interruptible

SLOW_MODULE = """
import time
print("ready", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt as error:
    raise ImportError("initialization failed") from error
"""
PLACES = {
    "in a loop": "say_ready(); time.sleep(60)",
    "while a module is imported": "import slow_module",
    "in a callback, where Python drops the error": """
class Slow:
    def __del__(self):
        say_ready()
        time.sleep(60)

slow = Slow()
del slow
time.sleep(60)
""",
    "in a library that makes another error of it": """
try:
    say_ready()
    time.sleep(60)
except KeyboardInterrupt as error:
    raise ValueError("the compiler failed") from error
""",
    "in a library that logs it": """
import contextlib
with contextlib.suppress(KeyboardInterrupt):
    say_ready()
    time.sleep(60)
time.sleep(60)
""",
    "in compiled code": """
say_ready()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
""",
}
PROGRAM = """
import hashlib, signal, sys, time
from gnp_scale.resilience.interrupts import interruptible

def say_ready():
    print("ready", flush=True)

# A shell starts processes in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

with interruptible():
    {}
"""


def start(program, folder):
    (folder / "slow_module.py").write_text(SLOW_MODULE)
    path = os.pathsep.join([str(folder), *sys.path])
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | {"PYTHONPATH": path},
    )


def interrupt(process):
    """Sends SIGINT once the process has said that it is ready; returns its exit code and standard error."""
    assert process.stdout.readline() == "ready\n"
    # From the line to the place itself.
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    return process.returncode, err


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_ctrl_c_is_one_line_and_130(place, tmp_path):
    process = start(PROGRAM.format(place.strip().replace("\n", "\n    ")), tmp_path)
    assert interrupt(process) == (130, "gnp-scale: interrupted\n")


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_first(tmp_path):
    program = PROGRAM.format(
        "try:\n        say_ready(); time.sleep(60)\n    finally:\n        say_ready(); time.sleep(60)"
    ).replace("with interruptible", "gnp_scale.resilience.interrupts._PATIENCE_S = 60\nwith interruptible")
    process = start("import gnp_scale.resilience.interrupts\n" + program, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert interrupt(process) == (130, "gnp-scale: interrupted again: ending at once\n")


def test_a_command_ends_by_itself_if_it_can(tmp_path):
    """It removes the file that it was writing."""
    end = "time.sleep(0.5); print('removed', file=sys.stderr)"
    program = PROGRAM.format(f"try:\n        say_ready(); time.sleep(60)\n    finally:\n        {end}")
    assert interrupt(start(program, tmp_path)) == (130, "removed\ngnp-scale: interrupted\n")


def test_what_was_printed_before_is_not_lost(tmp_path):
    """Into a pipe or a file, Python writes many lines at once."""
    process = start(PROGRAM.format("say_ready(); print('a result'); time.sleep(60)"), tmp_path)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "a result\n", "gnp-scale: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_that_waits_for_signals_gets_them(number, tmp_path):
    """As a run does, which blocks them: no other thread may take one of them."""
    program = PROGRAM.format(
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number:d}]); say_ready(); sys.exit(signal.sigwait([{number:d}]))"
    )
    process = start(program, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == number


@pytest.fixture
def default_handler():
    """A shell starts processes in the background, and so these tests, with SIGINT ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("default_handler")
def test_nothing_stays_changed_after_the_block():
    def fail():
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            raise ValueError("wrong")

    before = sys.unraisablehook, threading.active_count()
    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert (sys.unraisablehook, threading.active_count()) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.usefixtures("default_handler")
def test_the_signals_of_a_run_are_never_blocked_in_the_main_thread(monkeypatch):
    """Even for a moment, they would seem to be taken already."""
    threads, change = [], signal.pthread_sigmask
    monkeypatch.setattr(
        signal, "pthread_sigmask", lambda *mask: (threads.append(threading.current_thread()), change(*mask))[1]
    )
    with interruptible():
        assert threads
    assert threading.main_thread() not in threads


@pytest.mark.usefixtures("default_handler")
def test_a_handler_of_another_is_left_alone():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("default_handler")
def test_a_command_in_another_thread_leaves_ctrl_c_to_the_main_one():
    def look():
        with interruptible():
            found.append(signal.getsignal(signal.SIGINT))

    found, thread = [], threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize(
    ("handled", "expected"),
    [("SIG_DFL", -signal.SIGHUP), ("SIG_IGN", 0), ("lambda number, frame: sys.exit(7)", 7)],
    ids=["not", "by nohup", "in Python"],
)
def test_what_a_library_does_to_signals_is_undone(handled, expected):
    """As libtpu, it ignores SIGHUP, without Python's knowledge."""
    program = f"""
import ctypes, os, signal, sys
from gnp_scale.resilience.signals import take_back
from signal import SIG_DFL, SIG_IGN
signal.signal(signal.SIGHUP, {handled})
ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGHUP), ctypes.c_void_p(1))
take_back()
os.kill(os.getpid(), signal.SIGHUP)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == expected
