"""Published questions as tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_empg.environments.deep_search.data.question_files import QuestionFiles
from megatron_empg.environments.deep_search.published_world import FileQuestions


@pytest.fixture
def questions(tmp_path: Path) -> FileQuestions:
    path = tmp_path / "own.jsonl"
    record = {
        "id": "q1",
        "question": "Who founded Norhaven?",
        "answers": ["Ida Marsh"],
        "type": "founder",
        "hops": 1,
    }
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return FileQuestions(QuestionFiles.model_validate({"train": [{"dataset": "jsonl", "path": path}]}))


def test_a_question_keeps_its_answers_hops_and_type(questions: FileQuestions) -> None:
    (asked,) = questions.all("train")
    assert (asked.id, asked.text, asked.answers) == ("jsonl/q1", "Who founded Norhaven?", ("Ida Marsh",))
    assert (asked.kind, asked.facts) == ("jsonl", {"hops": 1, "type": "founder"})


def test_a_split_without_files_has_no_questions_and_none_can_be_drawn(questions: FileQuestions) -> None:
    assert list(questions.all("test_ood")) == []
    for draw in (lambda: questions.sample("test_ood", 1, 0), lambda: questions.fixed("test_ood", 1)):
        with pytest.raises(ValueError, match=r"questions\.test_ood names no file; give it at least one"):
            draw()
