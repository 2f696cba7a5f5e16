"""How ranks under torchrun end: the project's own errors without frames, all others with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_empg.launch.ports import free_port

RANK = """
from megatron_empg.trainer.rank_errors import run_rank
from megatron_empg.rollout.service.client import DriverClientError

def main():
    try:
        open("/no/such/file", encoding="utf-8")
    except OSError as error:
        raise {raised} from error

run_rank(main)
"""


def log_of(tmp_path: Path, raised: str) -> str:
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(raised=raised), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_empg.launch.torchrun", "--nproc-per-node", "1", "--nnodes", "1"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_an_error_of_the_project_s_own_is_a_sentence(tmp_path: Path) -> None:
    log = log_of(tmp_path, "DriverClientError('the driver at http://a:1 answered 500: one\\n  of them')")
    assert "error: the driver at http://a:1 answered 500: one\n  of them\n" in log
    assert "DriverClientError: the driver at http://a:1 answered 500: one" in "\n".join(log.splitlines()[-8:])
    assert 'File "' not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("raised", ["ZeroDivisionError('by zero')"])
def test_any_other_error_shows_where_it_arose(tmp_path: Path, raised: str) -> None:
    log = log_of(tmp_path, raised)
    assert "ZeroDivisionError: by zero" in log
    assert "rank.py" in log
    assert "No such file or directory" in log
