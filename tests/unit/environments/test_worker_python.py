"""Workers in another Python: of this one they see the package and the plug-in, and nothing else."""

import asyncio
import json
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

from megatron_empg.environments.base import EpisodeLimits, Task
from megatron_empg.environments.registry import plugin
from megatron_empg.environments.settings import EnvironmentSettings
from megatron_empg.environments.workers import WorkerOptions, WorkerPool, errors

OF_THE_WORKER = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions.py", "typing_inspection")
"""All that a worker imports beside the standard library."""
PLUGIN = """
import sys
from importlib.util import find_spec
from megatron_empg.environments import EnvironmentSettings, Opening, StepResult, Task, TaskSource

class Told(TaskSource):
    isolation = "process"

    def tasks(self, split):
        return [Task("t", [{"role": "user", "content": "tell"}], {})]

    def make(self, task):
        return Telling()

class Telling:
    async def reset(self):
        return Opening()

    async def step(self, action):
        if action == "break":
            raise RuntimeError("broken")
        told = {"path": sys.path, "python": sys.executable, "found": find_spec(action) is not None}
        return StepResult(action, False, info={name: str(value) for name, value in told.items()})

    async def close(self):
        pass
"""


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own that holds what a worker needs."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    ours = Path(sysconfig.get_path("purelib"))
    theirs = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    for name in OF_THE_WORKER:
        (theirs / name).symlink_to(ours / name)
    return folder / "bin" / "python"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a plug-in whose module lies in a folder of its own, beside another module."""
    (tmp_path / "plugin_that_tells.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "lies_beside_it.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield "plugin_that_tells:Told"
    sys.modules.pop("plugin_that_tells", None)


def steps(name: str, python: Path | None, *actions: str) -> list[dict[str, str]]:
    """What an episode tells at each step."""

    async def play() -> list[dict[str, str]]:
        pool = WorkerPool(
            name, EnvironmentSettings(), EpisodeLimits(), memory_gib=1, worker_memory_gib=1,
            options=WorkerOptions(start_timeout=120), python=python,
        )  # fmt: skip
        try:
            episode = pool.make(Task("t", [], {}))
            await episode.reset()
            results = [await episode.step(action) for action in actions]
            await episode.close()
            return [dict(result.info) for result in results]
        finally:
            await pool.close()

    return asyncio.run(play())


def test_a_worker_runs_in_the_other_python_and_imports_from_there(told: str, other_python: Path) -> None:
    names = ["pydantic", "megatron_empg.common", "plugin_that_tells", "torch", "numpy", "psutil", "lies_beside_it"]
    answers = steps(told, other_python, *names)
    found = [name for name, answer in zip(names, answers, strict=True) if answer["found"] == "True"]
    assert found == ["pydantic", "megatron_empg.common", "plugin_that_tells"]
    assert answers[0]["python"] == str(other_python)
    assert sysconfig.get_path("purelib") not in answers[0]["path"]


def test_without_one_a_worker_imports_as_this_process_does(told: str) -> None:
    (answer,) = steps(told, None, "lies_beside_it")
    assert (answer["python"], answer["found"]) == (sys.executable, "True")


def test_an_error_in_the_other_python_costs_its_episode_and_says_so(told: str, other_python: Path) -> None:
    with pytest.raises(errors.EnvironmentRaised, match="RuntimeError: broken"):
        steps(told, other_python, "break")


@pytest.mark.parametrize("made", ["nothing", "a folder", "a text"])
def test_what_cannot_be_run_is_refused_before_anything_starts(told: str, tmp_path: Path, made: str) -> None:
    python = tmp_path / "python"
    if made == "a folder":
        python.mkdir()
    if made == "a text":
        python.write_text("no program", encoding="utf-8")
    with pytest.raises(ValueError, match=r"its Python '.*/python' is not a program that can be run"):
        steps(told, python, "x")


def test_a_python_that_lacks_what_a_worker_needs_says_what(told: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    with pytest.raises(errors.WorkerStartError, match="No module named 'pydantic'"):
        steps(told, tmp_path / "bare/bin/python", "x")


def test_the_environment_may_lie_in_a_package(tmp_path, monkeypatch, other_python: Path) -> None:
    package = tmp_path / "package_that_tells"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "inside.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (answer,) = steps("package_that_tells.inside:Told", other_python, "package_that_tells.inside")
    assert answer["found"] == "True"


def test_a_package_without_a_file_is_refused(tmp_path, monkeypatch, other_python: Path) -> None:
    package = tmp_path / "package_without_a_file"
    package.mkdir()
    (package / "inside.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="the package 'package_without_a_file' has no file"):
        steps("package_without_a_file.inside:Told", other_python, "x")


def test_a_source_says_which_python_its_workers_take() -> None:
    kind = plugin("deep_search")
    assert kind.worker_python(kind.Settings()) is None


def test_a_worker_imports_no_more_than_is_listed_for_such_environments(other_python: Path) -> None:
    """requirements-alfworld.txt names these for the same reason."""
    program = textwrap.dedent("""
        import json, sys
        sys.path.append(sys.argv[1])
        import megatron_empg.environments.workers.worker
        files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
        inside = {file.partition("/site-packages/")[2].split("/")[0] for file in files}
        print(json.dumps(sorted(inside - {""})))
    """)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([other_python, "-P", "-s", "-c", program, root], check=True, capture_output=True)
    assert set(json.loads(done.stdout)) <= set(OF_THE_WORKER)
