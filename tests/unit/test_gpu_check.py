"""tools/gpu_check.py: which tests it finds, what it makes of parts that pass, fail, hang or cannot run."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools/gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "gpu_count", lambda: 1)
    return module


def python(check: Any, code: str, limit: float = 60.0, **given: Any) -> Any:
    return check.Part("part", (sys.executable, "-c", code), limit, tests=False, **given)


def test_every_file_with_a_gpu_test_is_a_part(check: Any, tmp_path: Path) -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert len(marked) >= 3
    parts = {part.name for part in check.parts(tmp_path, 80.0)}
    assert marked <= parts
    assert "tests/unit/test_gpu_check.py" not in parts, "it speaks of the mark and has no such test"


def test_parts_pass_fail_hang_and_leave_nothing_running(check: Any) -> None:
    log = io.StringIO()
    assert check.run(python(check, "print('well')"), log, 100).status == "passed"
    failed = check.run(python(check, "raise SystemExit('no kernel')"), log, 100)
    assert (failed.status, failed.tail) == ("failed", "no kernel")
    forking = "import subprocess; subprocess.run(['sleep', '86399'])"
    assert check.run(python(check, forking, limit=1.0), log, 100).status == "timed out"
    left = subprocess.run(["pgrep", "-f", "sleep 86399"], capture_output=True, check=False)
    assert left.stdout == b""
    assert "well" in log.getvalue()


def test_what_cannot_be_done_says_why(check: Any) -> None:
    for given, reason in [
        ({"needs": ("no_such_module.part",)}, "no_such_module.part not installed"),
        ({"gpus": 2}, "needs 2 GPUs, there is 1"),
    ]:
        outcome = check.run(python(check, "", **given), io.StringIO(), 100)
        assert (outcome.status, outcome.detail, outcome.bad) == ("not done", reason, False)
    assert check.run(python(check, ""), io.StringIO(), 1).detail == "no time left (--minutes)"


def test_tests_are_counted_and_failures_of_one_kind_shown_once(check: Any, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('n', [1, 2, 3])\n"
        "def test_bad(n): raise RuntimeError('out of memory')\n"
        "def test_skipped(): pytest.skip('no second GPU')\n"
    )
    part = check._pytest(str(tmp_path / "test_some.py"), tmp_path, limit=60, needs=(), gpu_mark=False)
    outcome = check.run(part, io.StringIO(), 100)
    assert (outcome.status, outcome.detail) == ("failed", "1 of 5 tests passed")
    assert outcome.skipped == ["test_skipped: no second GPU"]
    assert outcome.tail.count("--- test_bad") == 1
    where = {"gpu": "X", "gpus": 1, "memory_gib": 80, "cuda": "13.0", "python": "3.12",
             "libraries": {"torch": "2.13.0", "vllm": None}}  # fmt: skip
    page = check.tables(where, [outcome], {})
    assert "Not installed: vllm" in page
    assert "| failed | 1 of 5 tests passed |" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "tools/gpu_check.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert sys.executable in done.stderr


def test_without_torch_it_names_its_python(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "tools/gpu_check.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no torch" in done.stderr
    assert "GPU_PYTHON" in done.stderr
