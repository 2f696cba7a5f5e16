"""What the sbatch files do without a Slurm: the check on a login node, and the Python of the batch host."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def tools_without_slurm(tmp_path: Path) -> None:
    """A PATH of a machine without Slurm, and with a Python that has no packages."""
    (tmp_path / "tools").mkdir()
    for name in ("bash", "dirname"):
        (tmp_path / "tools" / name).symlink_to(shutil.which(name) or "/none")
    (tmp_path / "tools/python3").symlink_to(Path(sys.executable).resolve())


def check_said(tmp_path: Path, **given: str) -> str:
    """What --check says where there is no Slurm; it finds a fault."""
    tools_without_slurm(tmp_path)
    done = subprocess.run(
        [
            *("bash", "slurm/deepsearch_32b.sh", "--check", "run.steps=3", "engines.kv_cache_gib=0.125"),
            *("evaluation.questions=8", f"run.folder={tmp_path / 'run'}", "actor.tensor_parallel=1"),
        ],
        cwd=ROOT, env={"PATH": str(tmp_path / "tools"), "HOME": str(tmp_path), "EMPG_DEVICE": "cpu",
        "EMPG_RECIPE": "recipes/quickstart.yaml", "EMPG_MINIATURE": "1",
        "EMPG_TRAINER_NODES": "1", "EMPG_ROLLOUT_NODES": "1",
        "EMPG_GPUS_PER_NODE": "1", "EMPG_PYTHON": sys.executable, **given}, check=False,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 10, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("python", ["/no/python", f"{sys.executable} -S"])
def test_a_python_without_the_packages_is_named_with_the_fix(tmp_path: Path, python: str) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    wrapper.chmod(0o755)
    said = check_said(tmp_path, EMPG_PYTHON=str(wrapper))
    assert f"EMPG_PYTHON is '{wrapper}', which lacks packages" in said
    assert "Traceback" not in said


def test_a_check_without_slurm_looks_at_recipe_and_model_and_says_what_it_could_not(tmp_path: Path) -> None:
    """It plays one question through template, parser and search on the way."""
    said = check_said(tmp_path)
    assert "recipe and model are OK; Slurm was not asked, since this machine has no sbatch: check again " in said
    assert "error" not in said, "what could not be asked is not a fault"
    assert "one question, " in said
    assert "<|im_start|>user" in said, "the prompt as the model's own template writes it"
    assert re.search(r"turn: .*<search>", said)
    assert "observation: found " in said
    assert "the episode ends with reward 1" in said


def test_without_data_the_command_that_prepares_it_is_named(tmp_path: Path) -> None:
    """The miniature is trained on where it is asked for alone."""
    said = check_said(tmp_path, EMPG_MINIATURE="0")
    assert "bash slurm/prepare.sh deepsearch data/deepsearch" in said
    assert "EMPG_MINIATURE=1" in said
    assert "one question" not in said


def test_a_miniature_that_is_neither_wanted_nor_not_is_refused(tmp_path: Path) -> None:
    assert "EMPG_MINIATURE is 'yes'; allowed: 0, 1" in check_said(tmp_path, EMPG_MINIATURE="yes")


@pytest.mark.parametrize("python", ["/no/python", f"{sys.executable} -S"])
def test_a_preparation_under_a_python_without_the_packages_says_where_to_get_them(
    tmp_path: Path, python: str
) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {python} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    done = subprocess.run(
        ["bash", "slurm/prepare.sh", "deepsearch", str(tmp_path / "data"), "--dry-run"], cwd=ROOT,
        env={"PATH": os.environ["PATH"], "EMPG_PYTHON": str(wrapper)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 10, done.stdout
    assert f"EMPG_PYTHON is '{wrapper}', which " in done.stderr
    assert "(README.md, 'On a cluster'; without a GPU 'make setup')" in done.stderr


def test_a_batch_host_without_a_python_that_is_new_enough_is_told_so(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(
        ["bash", "slurm/train.sh", "--check", "recipes/quickstart.yaml"], cwd=ROOT,
        env={"PATH": os.environ["PATH"], "EMPG_HOST_PYTHON": str(old)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 10, done.stdout
    assert f"a Python of 3.9 or newer, which a job needs on its batch host beside any image: {old}:" in done.stderr
    assert "set EMPG_HOST_PYTHON to it" in done.stderr


def test_scripts_outside_of_the_repository_say_where_they_looked(tmp_path: Path) -> None:
    for name in ("train", "deepsearch_32b", "deepsearch_7b", "nccl_suite", "convert"):
        done = subprocess.run(
            ["bash", str(ROOT / f"slurm/{name}.sh")], cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "EMPG_HOME": str(tmp_path)}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 10, name
        assert f"no slurm/job.sh in {tmp_path}: submit from the repository, or set EMPG_HOME" in done.stdout


def test_the_scripts_together_are_short() -> None:
    """What they do is megatron_empg/launch; bash has no tests."""
    lines = [
        line for path in (ROOT / "slurm").glob("*.sh") for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) <= 200


def test_a_check_of_any_recipe_shares_out_one_node(tmp_path: Path) -> None:
    """Two trainer ranks, and engines beside them; on a login node without Slurm."""
    tools_without_slurm(tmp_path)
    done = subprocess.run(
        [
            *("bash", "slurm/train.sh", "--check", "recipes/quickstart.yaml", "evaluation.questions=8"),
            f"run.folder={tmp_path / 'run'}",
        ],
        cwd=ROOT, env={"PATH": str(tmp_path / "tools"), "HOME": str(tmp_path), "EMPG_DEVICE": "cpu",
        "EMPG_MINIATURE": "1", "EMPG_PYTHON": sys.executable}, check=False, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 10, done.stdout + done.stderr
    assert "EMPG_RECIPE=recipes/quickstart.yaml" in done.stdout
    assert "recipe and model are OK; Slurm was not asked" in done.stderr
