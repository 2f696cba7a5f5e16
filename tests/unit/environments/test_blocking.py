"""Calls in threads that never wait for each other."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from megatron_empg.environments import blocking
from megatron_empg.environments.blocking import PatientThreads, in_thread, run_at_once


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
    with pytest.raises(RuntimeError, match="2 calls that block are under way already, of which 0"):
        threads.submit(over.wait, 60)
    over.set()


def test_a_hanging_call_does_not_hold_up_the_end_of_the_process() -> None:
    code = (
        "import time; from megatron_empg.environments.blocking import PatientThreads;"
        "threads = PatientThreads(); threads.submit(time.sleep, 600); threads.shutdown()"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_calls_of_coroutines_run_in_threads_and_tell_what_came_of_them() -> None:
    def fails() -> None:
        raise KeyError("its own")

    async def calls() -> list[int]:
        with pytest.raises(KeyError, match="its own"):
            await in_thread(fails)
        return await asyncio.gather(*[in_thread(threading.get_ident) for _ in range(3)])

    assert threading.get_ident() not in asyncio.run(calls())


def test_the_event_loop_goes_on_beside_a_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, begun, over = PatientThreads(), threading.Event(), threading.Event()
    monkeypatch.setattr(blocking, "CALLS", threads)

    def hang() -> None:
        begun.set()
        over.wait(60)

    async def calls() -> str:
        hanging = asyncio.ensure_future(in_thread(hang))
        said = await in_thread(str.upper, "on")
        assert await in_thread(begun.wait, 20)
        hanging.cancel()
        await asyncio.wait([hanging])
        assert hanging.cancelled()
        return said

    try:
        assert asyncio.run(calls()) == "ON"
        deadline = time.monotonic() + 20
        while threads.running > 1 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert threads.running == 1, "a thread cannot be ended"
        assert threads.left_behind == 1
    finally:
        over.set()
    while threads.running:
        time.sleep(0.001)
    assert threads.left_behind == 0


def test_a_call_that_is_waited_for_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, over = PatientThreads(), threading.Event()
    monkeypatch.setattr(blocking, "CALLS", threads)

    async def calls() -> tuple[int, int]:
        waited_for = asyncio.ensure_future(in_thread(over.wait, 60))
        await asyncio.sleep(0)
        counts = threads.running, threads.left_behind
        over.set()
        assert await waited_for
        return counts

    assert asyncio.run(calls()) == (1, 0)


def test_a_coroutine_that_waits_for_nothing_has_its_result_at_once() -> None:
    async def counts() -> int:
        return 5

    async def fails() -> None:
        raise KeyError("its own")

    async def waits() -> None:
        await asyncio.sleep(0)

    assert run_at_once(counts()) == 5
    with pytest.raises(KeyError, match="its own"):
        run_at_once(fails())
    with pytest.raises(RuntimeError, match="the coroutine waits for something"):
        run_at_once(waits())
