import os
import signal
import subprocess
import sys
import time

import pytest

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
