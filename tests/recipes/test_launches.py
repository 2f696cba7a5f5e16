"""What a rehearsal sees of the processes that it watches."""

import os
import subprocess
import sys

from tests.recipes.launches import thread_states

WORKS_BEHIND_ITS_FIRST_THREAD = """
import threading, time
def work():
    while True:
        pass
threading.Thread(target=work, daemon=True).start()
print("begun", flush=True)
time.sleep(600)
"""


def test_a_thread_that_works_is_seen_though_the_first_one_waits() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKS_BEHIND_ITS_FIRST_THREAD], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert "R" in set().union(*(thread_states(process.pid) for _ in range(50)))
        finally:
            process.kill()


def test_a_process_that_is_gone_has_no_threads() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert thread_states(process.pid) == set()
    assert thread_states(os.getpid())
