"""What a cluster installs can be resolved; what must be built after it is pinned."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


# What the setup.py of each imports besides Python's own modules.
BUILD_IMPORTS = {
    "transformer-engine-torch": {"setuptools", "wheel", "packaging", "torch"},
    "apex": {"setuptools", "packaging", "torch"},
}


def pinned() -> dict[str, str]:
    """Versions by package of requirements.txt."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


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


@pytest.mark.parametrize("package", BUILD_IMPORTS)
def test_what_a_build_imports_is_installed_before_it(package):
    """Without build isolation nothing else is there, and a bare Python 3.12 has not even setuptools."""
    assert package in (ROOT / "requirements-build.txt").read_text()
    assert BUILD_IMPORTS[package] | {"ninja"} <= pinned().keys()


@pytest.mark.slow
def test_the_build_of_transformer_engine_starts_with_what_is_installed_before_it(tmp_path):
    """All but torch, so the build must come as far as to ask for it."""
    python = python312()
    if python is None:
        pytest.skip("no Python 3.12 with pip here")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    pip = [str(tmp_path / "venv/bin/python"), "-m", "pip"]
    before = [f"{name}=={pinned()[name]}" for name in ("setuptools", "wheel", "packaging", "ninja", "pybind11")]
    subprocess.run([*pip, "install", "--quiet", *before], check=True, timeout=300)
    version = pinned()["transformer-engine"]
    done = subprocess.run(
        [*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(tmp_path),
         f"transformer-engine-torch=={version}"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "This package needs Torch to build" in said, said[-3000:]


def test_the_image_is_built_only_with_one_cudnn():
    maps = "7f00-7f01 r-xp 00000000 08:01 12 {}\n"
    torchs = ["/opt/empg/lib/nvidia/cudnn/lib/libcudnn.so.9", "/opt/empg/lib/nvidia/cudnn/lib/libcudnn_ops.so.9.2"]
    other = "/usr/lib/x86_64-linux-gnu/libcudnn_graph.so.9"
    look = runpy.run_path(str(ROOT / "container/check_libraries.py"))["folders"]
    assert look("".join(map(maps.format, torchs)), "libcudnn") == ["/opt/empg/lib/nvidia/cudnn/lib"]
    assert len(look("".join(map(maps.format, [*torchs, other])), "libcudnn")) == 2
    for name in ("Dockerfile", "megatron_empg.def"):
        recipe = (ROOT / "container" / name).read_text()
        assert re.search(r"check_libraries.py torch transformer_engine.pytorch", recipe), name
        assert re.search(r"CUDNN_HOME=/opt/empg/lib/python3.12/site-packages/nvidia/cudnn", recipe), name


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
