import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_empg.common.files import put_text
from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.run.evaluations import Answered, read_answered, write_answered
from megatron_empg.run.folder import RunFolder, versions
from megatron_empg.run.folder_lock import RunFolderError


def test_a_new_folder_holds_recipe_and_versions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").open("run: {steps: 3}\n", {"gpu": "none"})
    assert folder.recipe.read_text() == "run: {steps: 3}\n"
    (start,) = json.loads(folder.versions.read_text())["starts"]
    assert {"time", "platform", "python", "torch", "megatron-core", "transformers", "commit"} <= set(start)
    assert start["gpu"] == "none"
    for path in (folder.checkpoints, folder.episodes, folder.tensorboard, folder.logs):
        assert path.is_dir()


def test_each_start_is_noted(tmp_path: Path) -> None:
    for _ in range(2):
        RunFolder(tmp_path).open("a: 1").close()
    assert len(json.loads((tmp_path / "versions.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, '{"starts": 5}', '{"starts": null}', "[]", "{"])
def test_a_start_is_noted_where_the_notes_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "versions.json").write_text(text)
    RunFolder(tmp_path).open("a: 1").close()
    assert len(json.loads((tmp_path / "versions.json").read_text())["starts"]) == 1


def test_making_the_object_touches_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    script = (
        "import sys; from megatron_empg.run.folder import RunFolder\n"
        f"folder = RunFolder({str(tmp_path)!r}).open('a: 1'); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RunFolderError, match=r"another process trains in .*run\.folder"):
            RunFolder(tmp_path).open("a: 2")
        assert (tmp_path / "recipe.yaml").read_text() == "a: 1"
        other.kill()
    RunFolder(tmp_path).open("a: 2")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write the run folder"):
        RunFolder(tmp_path / "file").open("a: 1")


def test_cut_removes_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).open("a: 1")
    for step in range(1, 6):
        append_line(folder.metrics, {"step": step})
        append_line(folder.steps, {"step": step, "step_entropies": [0.5]})
        write_answered(folder, Answered(step, "test_id/greedy", "01"))
        for suffix in ("jsonl", "md"):
            (folder.episodes / f"step_{step:06d}.{suffix}").write_text("{}\n")
    folder.cut(4)
    assert [line["step"] for line in read_lines(folder.metrics)] == [1, 2, 3]
    assert [line["step"] for line in read_lines(folder.steps)] == [1, 2, 3]
    assert [passed.step for passed in read_answered(folder)] == [1, 2, 3]
    assert len(list(folder.episodes.iterdir())) == 6


def test_versions_name_the_commit_only_inside_the_projects_repository() -> None:
    commit = versions()["commit"]
    assert commit is None or len(commit.removesuffix("+changes")) == 40


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "train/rew')
    assert read_lines(path) == [{"step": 1}]


@pytest.mark.parametrize("text", ["a\u2028b\u0085c\x0bd", "line\nline", "\ud800 lone surrogate", "日本"])
def test_any_text_survives(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"text": text})
    append_line(path, {"text": "next"})
    assert read_lines(path) == [{"text": text}, {"text": "next"}]


def test_putting_replaces_whole_files_and_leaves_nothing_beside(tmp_path: Path) -> None:
    put_text(tmp_path / "a", "old")
    put_text(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "new"
