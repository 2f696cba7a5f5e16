"""How ranks under torchrun end: the project's own errors without frames, all others with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.launch.ports import free_port
from megatron_empg.launch.torchrun import status_of_ranks

RANK = """
from megatron_empg.trainer.rank_errors import run_rank
import os, signal
from megatron_empg.rollout.service.client import RolloutServiceClientError, RolloutServiceGoneError

def main():
    try:
        open("/no/such/file", encoding="utf-8")
    except OSError as error:
        raise {raised} from error

run_rank(main)
"""


def log_of(tmp_path: Path, raised: str, status: int) -> str:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(raised=raised), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_empg.launch.torchrun", "--nproc-per-node", "1", "--nnodes", "1"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    return done.stderr


def test_an_error_of_the_project_s_own_is_a_sentence(tmp_path: Path) -> None:
    raised = "RolloutServiceClientError('the driver at http://a:1 answered 500: one\\n  of them')"
    log = log_of(tmp_path, raised, LASTING_FAULT)
    assert "error: the driver at http://a:1 answered 500: one\n  of them\n" in log
    assert "RolloutServiceClientError: the driver at http://a:1 answered 500: one" in "\n".join(
        log.splitlines()[-8:]
    )
    assert 'File "' not in log
    assert "Traceback" not in log


def test_one_that_need_not_come_again_says_so_by_its_status(tmp_path: Path) -> None:
    log = log_of(tmp_path, "RolloutServiceGoneError('the driver at http://a:1: ConnectError')", 1)
    assert "error: the driver at http://a:1: ConnectError\n" in log
    assert "Traceback" not in log


def test_a_rank_that_is_killed_is_told_as_its_signal(tmp_path: Path) -> None:
    assert "SIGKILL" in log_of(tmp_path, "SystemExit(os.kill(os.getpid(), signal.SIGKILL))", 128 + 9)


@pytest.mark.parametrize("raised", ["ZeroDivisionError('by zero')"])
def test_any_other_error_shows_where_it_arose(tmp_path: Path, raised: str) -> None:
    log = log_of(tmp_path, raised, 1)
    assert "ZeroDivisionError: by zero" in log
    assert "rank.py" in log
    assert "No such file or directory" in log


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([1], 1),
        ([LASTING_FAULT], LASTING_FAULT),
        ([-9], 137),
        ([1, LASTING_FAULT, -9], LASTING_FAULT),
        ([1, -9], 137),  # the others saw their peer go
        ([1, -15], 1),  # torchrun asked the others to end
        ([1, -6], 1),  # NCCL ended the others
        ([-6, -15], 134),
        ([-15], 143),
        ([3, 1], 3),  # the first
    ],
)
def test_one_status_speaks_for_all_ranks(statuses: list[int], status: int) -> None:
    assert status_of_ranks(statuses) == status
