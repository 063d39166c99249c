"""Stop signals, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

HEAD = """
import httpx2, os, signal, sys, threading, time
from multiprocessing import get_context
from jobapi.signals import StopSignals

# What a shell runs in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def in_thread(target):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_send_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    done = run(
        f"""
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.asked, flush=True)
    os.kill(os.getpid(), {number})
    time.sleep(60)
"""
    )
    assert (done.stdout, done.returncode) == ("True\n", 128 + number)


def test_leave_restores_the_handlers() -> None:
    done = run(
        """
with StopSignals():
    with StopSignals() as inner:
        os.kill(os.getpid(), signal.SIGINT)
        print(inner.asked)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_fork_in_a_thread_gives_children_the_handlers_of_before() -> None:
    done = run(
        """
def fork():
    # At once: not even a new child misses it.
    child = get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(30)
    print(child.exitcode)
    reader, writer = get_context("fork").Pipe(duplex=False)
    child = get_context("fork").Process(target=lambda: (writer.send(1), time.sleep(60)))
    child.start()
    reader.recv()
    os.kill(child.pid, signal.SIGINT)
    child.join(30)
    print(child.exitcode)
    for _ in range(20):
        with get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]

with StopSignals() as signals:
    in_thread(fork)
    print(signals.asked)
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.asked, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    )
    # What KeyboardInterrupt ends is 1 to multiprocessing.
    assert done.stdout.split() == ["-15", "1", "False", "True", "set()"], done.stderr


def test_signal_in_a_child_that_ran_no_hooks_is_not_taken_for_the_parents() -> None:
    done = run(
        """
with StopSignals() as signals:
    child = os.fork()
    if not child:
        # As a library leaves them that forks in C.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signals._handle)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signals.asked)
"""
    )
    assert done.stdout.split() == ["-15", "False"], done.stderr


def test_import_where_processes_cannot_fork_works() -> None:
    done = run(
        """
del sys.modules["jobapi.signals"], os.register_at_fork, signal.pthread_sigmask
import jobapi.client
print("imported")
"""
    )
    assert done.stdout == "imported\n", done.stderr
