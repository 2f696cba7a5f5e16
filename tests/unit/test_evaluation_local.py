"""An evaluation on this machine, whole but for the engine, a stand-in: over an index, and without a service."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_empg.environments.base import EpisodeLimits, Split, Task, TaskSource
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.evaluate.errors import EvaluationError
from megatron_empg.evaluate.options import EvaluationOptions
from megatron_empg.evaluate.run import EvaluationRun, _passes
from megatron_empg.recipe import RecipeError, load_recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.trainer.driver import open_driver
from tests.stub_engine import StubEngine

RECIPE = Path("recipes/quickstart.yaml")
POLICY = Path("recipes/miniature/policy")
TOKEN = "0123456789abcdef"
QUESTION = {"id": "q1", "question": "Who wrote it?", "answers": ["Ada"], "hops": 2}
PAGES = [
    {"id": "0", "contents": "Program\nAda wrote the program."},
    {"id": "1", "contents": "Engine\nCharles designed the engine."},
]


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_published_questions_are_asked_over_an_index_in_this_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index(write_lines(tmp_path / "pages.jsonl", *PAGES), tmp_path / "index")
    questions = write_lines(tmp_path / "questions.jsonl", QUESTION)
    files = {split: [{"dataset": "jsonl", "path": str(questions)}] for split in ("train", "test_id")}
    chat = ChatTokens.from_pretrained(POLICY)
    seen: list[str] = []

    def turn(body: dict[str, Any]) -> list[int]:
        """Looks the question up, then answers what it reads."""
        read = chat._tokenizer.decode(body["token_ids"])
        seen.append(read)
        found = "Ada wrote the program" in read
        call = "<answer> Ada </answer>" if found else "<search> who wrote the program </search>"
        said = f"<think> so it is . </think> {call}"
        return [*chat._tokenizer(said, add_special_tokens=False)["input_ids"], chat.end_of_turn]

    settings = json.dumps({"corpus": None, "questions": files, "index": str(tmp_path / "index"), "prompt": "none"})
    words = [f"environment.settings={settings}", f"model.path={POLICY}"]
    options = EvaluationOptions(splits=("test_id",), questions=1, greedy=False, json_path=tmp_path / "out.json")
    with StubEngine(turn) as engine, EvaluationRun(RECIPE, words, options) as evaluation:
        (policy,) = evaluation.unanswered()

        async def ask() -> None:
            async with open_driver(evaluation.recipe_of(policy), [engine.url], TOKEN) as driver:
                await evaluation.ask(driver, policy)

        asyncio.run(ask())
        document = evaluation.finish()
    (outcome,) = document.policies[0].outcomes
    assert (outcome.end, outcome.turns, outcome.hops, outcome.kind) == ("success", 2, 2, "jsonl"), seen
    assert "success in % by hops" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["policies"][0]["outcomes"][0]["success"] is True


class Failing(TaskSource):
    """Fails of its own kinds of errors, when it is made or when it is asked."""

    def __init__(self, settings: Any, limits: EpisodeLimits) -> None:
        super().__init__(settings, limits)
        if limits.max_turns == 3:
            raise KeyError("a shard")

    def tasks(self, split: Split) -> list[Task]:
        raise ZeroDivisionError("no shard")

    def make(self, task: Task) -> Any:
        raise NotImplementedError


class Nameless(Failing):
    def fixed(self, split: Split, count: int) -> list[Task]:
        return [Task("one", [], {})] * count


@pytest.mark.parametrize(
    ("name", "turns", "kind", "said"),
    [
        ("Failing", 3, RecipeError, r"environment\.settings: KeyError: 'a shard'"),
        ("Failing", 4, RecipeError, r"evaluation\.questions is 2: ZeroDivisionError: no shard"),
        ("Nameless", 4, EvaluationError, "2 questions have 1 names"),
    ],
)
def test_whatever_an_environment_raises_is_told_with_its_key(
    name: str, turns: int, kind: type[Exception], said: str
) -> None:
    where = f"environment.name={__name__}:{name}"
    words = [where, "environment.settings={}", f"environment.max_turns={turns}", "evaluation.questions=2"]
    with pytest.raises(kind, match=said):
        _passes(load_recipe(RECIPE, words), 1)
