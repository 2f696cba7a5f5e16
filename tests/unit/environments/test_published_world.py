"""Published questions as tasks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from megatron_empg.environments.deep_search.data.question_files import QuestionFiles
from megatron_empg.environments.deep_search.published_world import FileQuestions
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.registry import make_task_source


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


def test_an_observation_has_no_more_characters_than_the_settings_say(tmp_path: Path) -> None:
    corpus, own = tmp_path / "corpus.jsonl", tmp_path / "own.jsonl"
    corpus.write_text(json.dumps({"title": "Norhaven", "text": "by the sea " * 2000}) + "\n", encoding="utf-8")
    record = {"id": "q1", "question": "Where is Norhaven?", "answers": ["by the sea"]}
    own.write_text(json.dumps(record) + "\n", encoding="utf-8")
    build_index(corpus, tmp_path / "index", progress=lambda line: None)
    questions = {"train": [{"dataset": "jsonl", "path": str(own)}]}

    async def shown(**settings: int) -> list[str]:
        source = make_task_source("deep_search", questions=questions, index=str(tmp_path / "index"), **settings)
        episode = source.make(source.tasks("train")[0])
        await episode.reset()
        found = []
        for tool, argument in (("search", "sea"), ("visit", "norhaven")):
            step = await episode.step(f"<think> so</think><{tool}> {argument}</{tool}>")
            assert step.observation is not None
            found.append(step.observation)
        await source.close()
        return found

    searched, visited = asyncio.run(shown())
    assert 700 < len(searched) <= 830
    assert 3950 < len(visited) <= 4000
    assert visited.endswith(" (cut)")
    assert [len(text) <= 300 for text in asyncio.run(shown(page_characters=300))] == [True, True]


def test_a_split_without_files_has_no_questions_and_none_can_be_drawn(questions: FileQuestions) -> None:
    assert list(questions.all("test_ood")) == []
    for draw in (lambda: questions.sample("test_ood", 1, 0), lambda: questions.fixed("test_ood", 1)):
        with pytest.raises(ValueError, match=r"questions\.test_ood names no file; give it at least one"):
            draw()
