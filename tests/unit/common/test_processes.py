import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_empg.common.processes import PARENT_VARIABLE

CHILD = """
import os, subprocess, sys, time
from megatron_empg.common.processes import die_with_parent, forked_children_die_with_parent
if sys.argv[1] == "fork":
    forked_children_die_with_parent()
    child = os.fork()
    if child == 0:
        time.sleep(60)
else:
    program = "import os, time; from megatron_empg.common.processes import die_with_parent as d;"
    program += "d(os.getppid()); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    child = process.pid
print(child, flush=True)
time.sleep(60)
"""


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("how", ["fork", "program"])
def test_child_of_a_killed_parent_dies(how):
    parent = subprocess.Popen([sys.executable, "-c", CHILD, how], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _is_running(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    alive = _is_running(child)
    if alive:
        os.kill(child, signal.SIGKILL)
    assert not alive


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_whose_parent_was_gone_before_it_looked_ends_at_once():
    program = "from megatron_empg.common.processes import die_with_parent as d; d(); print('lives')"
    for parent, said in ((os.getpid(), "lives\n"), (2**22, "")):
        environment = {**os.environ, PARENT_VARIABLE: str(parent)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.returncode) == (said, 0 if said else 1), done.stderr


def test_the_parent_that_is_told_is_not_that_of_a_processs_own_children():
    program = (
        "import os; from megatron_empg.common.processes import PARENT_VARIABLE, die_with_parent;"
        "die_with_parent(); print(PARENT_VARIABLE in os.environ)"
    )
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout
    assert said == b"False\n"
