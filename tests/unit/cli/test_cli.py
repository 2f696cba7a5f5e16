"""What the commands say to input that cannot be used: one message, a status, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def junk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "latin.yaml").write_bytes(b"run: \xfc\n")
    (folder / "empty.yaml").touch()
    (folder / "folder").mkdir()
    return folder


def said(*words: str, locale: str = "C.UTF-8") -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": locale, "PYTHONUTF8": "0", "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_empg.cli", *words],
        cwd=ROOT, env=environment, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.parametrize("words", ["report JUNK/nowhere", "watch JUNK/nowhere", "preflight --ports ²"])
def test_what_was_given_wrong_is_status_2(junk: Path, words: str) -> None:
    status, output = said(*words.replace("JUNK", str(junk)).split())
    assert status == 2, output


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("report JUNK/nowhere", "is not a run folder"),
        ("report JUNK/folder", "is not a run folder"),
        ("report JUNK/latin.yaml", "is not a run folder"),
        ("train JUNK/nowhere.yaml", "cannot read recipe"),
        ("train JUNK/latin.yaml", "not UTF-8"),
        ("train JUNK/empty.yaml", "not sections of keys"),
        ("train JUNK/folder", "cannot read recipe"),
        ("sft JUNK/latin.yaml", "not UTF-8"),
        ("evaluate JUNK/latin.yaml", "not UTF-8"),
        ("plan JUNK/latin.yaml --gpus 4", "not UTF-8"),
        ("preflight JUNK/latin.yaml", "not UTF-8"),
        (
            "train recipes/quickstart.yaml engines.host=no.such.host run.folder=JUNK/x",
            "engines.host is 'no.such.host'",
        ),
        ("train recipes/quickstart.yaml run.folder=/proc/x", "run.folder: cannot write"),
        ("train recipes/quickstart.yaml run.folder=JUNK/latin.yaml", "run.folder: cannot write"),
        (
            "train recipes/quickstart.yaml environment.settings.corpus=JUNK/latin.yaml run.folder=JUNK/x",
            "environment",
        ),
        ("convert to-hf recipes/miniature/policy JUNK/out --max-shard-gib nan", "max-shard-gib"),
        ("environments nobody", "environment name 'nobody' is unknown; allowed: alfworld, deep_search"),
        ("environments check", "check what?"),
        ("environments check os:getcwd", "is not a subclass of megatron_empg.environments.TaskSource"),
        ("environments check deep_search corpus=JUNK/nowhere", "JUNK/nowhere"),
        ("environments check deep_search corpus=JUNK/latin.yaml", "cannot be made"),
        ("environments check deep_search colour=red", "colour: there is no such setting"),
        ("index JUNK/nowhere JUNK/x", "JUNK/nowhere"),
        ("index recipes/miniature/corpus.jsonl JUNK/x --encoder JUNK/folder", "folder holds no model"),
        (
            "environments check deep_search questions={} index=JUNK/folder",
            "cannot be made: no index at JUNK/folder",
        ),
        ("nonsense", "No such command"),
    ],
)
def test_junk_is_answered_by_a_message(junk: Path, words: str, part: str) -> None:
    status, output = said(*words.replace("JUNK", str(junk)).split())
    assert status in (1, 2)
    assert part.replace("JUNK", str(junk)) in " ".join(output.split())
    assert "Traceback" not in output
    assert not (junk / "x").exists()


def test_a_recipe_is_read_as_utf8_in_a_locale_that_is_not(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("runs/quickstart", "läufe/schnell"), encoding="utf-8")
    status, output = said("train", str(recipe), "run.steps=0", locale="C")
    assert status == 2
    assert "run.steps" in output
    assert "UTF-8" not in output
