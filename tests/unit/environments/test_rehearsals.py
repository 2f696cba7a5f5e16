"""The turns by which Deep Search tries its tools find something: where they do not, a tool is broken."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from megatron_empg.environments.base import StepResult, Task, TaskSource
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.environments.registry import make_task_source

CORPUS = Path(__file__).resolve().parents[3] / "recipes/miniature/corpus.jsonl"


def rehearsed(source: TaskSource, task: Task) -> list[StepResult]:
    async def play() -> list[StepResult]:
        environment = source.make(task)
        await environment.reset()
        results = [await environment.step(turn) for turn in source.rehearse(task)]
        await environment.close()
        return results

    return asyncio.run(play())


@pytest.mark.parametrize("prompt", ["none", "tags", "tools"])
def test_facts_are_searched_for_and_their_page_visited(prompt: str) -> None:
    source = make_task_source("deep_search", corpus=CORPUS, prompt=prompt)
    for task in source.sample("train", 20, seed=3):
        search, visit, answer = rehearsed(source, task)
        assert (search.observation or "").startswith("found ")
        assert (visit.observation or "").startswith("page : ")
        assert (answer.done, answer.reward) == (True, 1.0)


def test_of_published_questions_no_page_is_visited_that_there_may_not_be(tmp_path: Path) -> None:
    pages, questions = tmp_path / "pages.jsonl", tmp_path / "questions.jsonl"
    pages.write_text(json.dumps({"id": "1", "title": "Lima", "text": "Lima lies on the river Rimac."}) + "\n")
    questions.write_text(json.dumps({"id": "q", "question": "Which river?", "answers": ["Rimac"]}) + "\n")
    build_index(pages, tmp_path / "index")
    files = {"train": [{"dataset": "jsonl", "path": str(questions)}]}
    source = make_task_source("deep_search", questions=files, index=tmp_path / "index")
    (task,) = source.tasks("train")
    search, answer = rehearsed(source, task)
    assert "Lima lies on the river Rimac." in (search.observation or "")
    assert (answer.done, answer.reward) == (True, 1.0)
