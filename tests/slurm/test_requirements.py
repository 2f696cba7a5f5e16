"""What a cluster installs can be resolved; what must be built after it is pinned."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python312() -> str | None:
    candidates = [shutil.which("python3.12"), *map(str, Path.home().glob(".pyenv/versions/3.12.*/bin/python"))]
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-m", "pip", "--version"], capture_output=True, check=False)
        if done.returncode == 0:
            return candidate
    return None


@pytest.mark.slow
def test_pip_resolves_the_cluster_requirements_on_python_312(tmp_path):
    python = python312()
    if python is None:
        pytest.skip("no Python 3.12 with pip here")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report",
         str(tmp_path / "report.json"), "-r", str(ROOT / "requirements.txt")],
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report.json").exists()


def test_what_is_built_is_pinned_and_the_container_builds_it():
    lines = [
        line for line in (ROOT / "requirements-build.txt").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    transformer_engine, apex = lines
    core = re.search(r"^transformer-engine==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert transformer_engine == f"transformer-engine-torch=={core[1]}"
    assert re.fullmatch(r"apex @ git\+https://github\.com/NVIDIA/apex@[0-9a-f]{40}", apex)
    for name in ("Dockerfile", "megatron_empg.def"):
        recipe = (ROOT / "container" / name).read_text()
        assert re.search(r"-r \S*requirements\.txt", recipe), name
        assert re.search(r"--no-build-isolation -r \S*requirements-build\.txt", recipe), name
        assert "nvidia/cuda:13.0" in recipe
