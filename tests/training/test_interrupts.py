"""Signals, in processes of their own."""

import subprocess
import sys
import time

import pytest

START = """
import os, signal, sys, time
from tgsent.training import interrupts
def send(name): os.kill(os.getpid(), getattr(signal, name)); time.sleep(0.05)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START + script], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_what_runs(name: str) -> None:
    done = run(f"""
try:
    with interrupts.handled():
        send("{name}")
        print("not reached")
except KeyboardInterrupt:
    print("ended", interrupts.requested())
""")
    assert done.stdout == "ended True\n", done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_first_signal_is_noted_and_a_second_leaves_at_once(name: str) -> None:
    done = run(f"""
with interrupts.handled(), interrupts.deferred():
    print(interrupts.requested())
    send("{name}")
    print(interrupts.requested(), flush=True)
    send("SIGINT")
    print("not reached", flush=True)
""")
    assert done.stdout == "False\nTrue\n", done.stderr
    assert done.returncode == 130
    assert done.stderr.startswith("tgsent: interrupted; finished work is kept")


def test_a_signal_that_nobody_asked_for_is_not_lost() -> None:
    done = run("""
try:
    with interrupts.handled():
        with interrupts.deferred():
            send("SIGTERM")
        print("not reached")
except KeyboardInterrupt:
    print("ended")
""")
    assert done.stdout == "ended\n", done.stderr


def test_what_was_ignored_stays_ignored() -> None:
    done = run("""
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interrupts.handled():
    send("SIGHUP")
print(interrupts.requested())
""")
    assert done.stdout == "False\n", done.stderr


def test_handlers_are_as_before_afterwards() -> None:
    done = run("""
before = signal.getsignal(signal.SIGTERM)
with interrupts.handled():
    assert signal.getsignal(signal.SIGTERM) is not before
print(signal.getsignal(signal.SIGTERM) is before)
""")
    assert done.stdout == "True\n", done.stderr


def test_a_step_that_does_not_end_is_left() -> None:
    started = time.monotonic()
    done = run("""
interrupts.SECONDS_TO_STOP = 0.5
with interrupts.handled(), interrupts.deferred():
    send("SIGTERM")
    time.sleep(50)
""")
    assert done.returncode == 130
    assert time.monotonic() - started < 20
    assert done.stderr == (
        "tgsent: interrupted; finished work is kept; run the same command again to resume\n"
    )
