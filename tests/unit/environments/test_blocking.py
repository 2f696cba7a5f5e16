"""Calls in threads that never wait for each other."""

import subprocess
import sys
import threading
import time

import pytest

from megatron_empg.environments.blocking import PatientThreads


def test_a_call_does_not_stand_behind_those_that_hang() -> None:
    threads, over = PatientThreads(), threading.Event()
    hanging = [threads.submit(over.wait, 60) for _ in range(50)]
    assert threads.submit(lambda: 5).result(20) == 5
    over.set()
    assert all(call.result(20) for call in hanging)


def test_a_free_thread_is_used_again() -> None:
    threads = PatientThreads()
    names = set()
    for _ in range(50):
        names.add(threads.submit(threading.get_ident).result(20))
        while threads.running:
            time.sleep(0.001)
    assert len(names) == 1


def test_errors_go_to_the_caller_and_too_many_calls_are_refused() -> None:
    threads, over = PatientThreads(most=2), threading.Event()
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(20)
    while threads.running:
        time.sleep(0.001)
    for _ in range(2):
        threads.submit(over.wait, 60)
    with pytest.raises(RuntimeError, match="2 calls are under way"):
        threads.submit(over.wait, 60)
    over.set()


def test_a_hanging_call_does_not_hold_up_the_end_of_the_process() -> None:
    code = (
        "import time; from megatron_empg.environments.blocking import PatientThreads;"
        "threads = PatientThreads(); threads.submit(time.sleep, 600); threads.shutdown()"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
