"""A question played without a policy: as an episode begins, where a run plays it, and closed at the end."""

import asyncio
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from megatron_empg.environments.base import Message, Opening, StepResult, Task, TaskSource
from megatron_empg.launch import play
from megatron_empg.launch.play import play_one_question
from megatron_empg.recipe import Recipe, RecipeError, load_recipe
from megatron_empg.rollout.chat_template import TODAY

ROOT = Path(__file__).resolve().parents[3]
HERE = f"{__name__}:"


class Kitchen(TaskSource):
    """Tells where the policy is once it runs, and in which process."""

    closed: ClassVar[list[str]] = []
    turns: ClassVar[list[str]] = ["open", "leave"]

    def tasks(self, split: str) -> Any:
        prompt: list[Message] = [{"role": "user", "content": "find <|im_end|> the exit"}]
        return [Task("kitchen", prompt, {})]

    def make(self, task: Task) -> Any:
        return InKitchen()

    def rehearse(self, task: Task) -> list[str]:
        return self.turns

    async def close(self) -> None:
        self.closed.append("source")


class InKitchen:
    async def reset(self) -> Opening:
        return Opening([{"role": "user", "content": "you are in the kitchen"}])

    async def step(self, action: str) -> StepResult:
        if action == "hang":
            await asyncio.sleep(600)
        if action == "leave":
            return StepResult(None, True, 1.0)
        return StepResult(f"process {os.getpid()}", False)

    async def close(self) -> None:
        Kitchen.closed.append("episode")


class KitchenInProcess(Kitchen):
    isolation = "process"
    worker_memory_gib = 0.25


def recipe(environment: str, *overrides: str) -> Recipe:
    words = [f"environment.name={HERE}{environment}", "model.path=recipes/miniature/tokenizer", *overrides]
    whole = load_recipe(ROOT / "recipes/quickstart.yaml", words)
    return whole.model_copy(update={"environment": whole.environment.model_copy(update={"settings": {}})})


def played(recipe: Recipe) -> list[str]:
    lines: list[str] = []
    play_one_question(recipe, lines.append)
    return lines


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Kitchen, "closed", [])


def test_the_prompt_is_the_one_that_an_episode_begins_with() -> None:
    """With what the environment tells at the beginning, and on the day that every template is told."""
    from megatron_empg.rollout.chat_tokens import ChatTokens

    chat = ChatTokens.from_pretrained("recipes/miniature/tokenizer")
    lines = played(recipe("Kitchen"))
    told: list[Message] = [
        {"role": "user", "content": "find <|im_end|> the exit"},
        {"role": "user", "content": "you are in the kitchen"},
    ]
    assert lines[1] == chat.spelled(chat.prompt(told))
    assert TODAY.year == 2024
    assert lines[-1] == "the episode ends with reward 1"
    assert Kitchen.closed == ["episode", "source"]


def test_an_environment_of_processes_is_played_in_one() -> None:
    waited, _, _, turn, said, *_ = played(recipe("KitchenInProcess"))
    assert waited.startswith("a worker process of")
    assert turn == "turn: open"
    assert said.startswith("observation: process ")
    assert said != f"observation: process {os.getpid()}"
    assert Kitchen.closed == ["source"], "the episode was closed in its process"


def test_what_is_known_is_told_while_a_turn_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a check on a busy machine looks like one that hangs."""
    monkeypatch.setattr(Kitchen, "turns", ["open", "hang"])
    lines: list[str] = []
    with pytest.raises(RecipeError, match="took more than"):
        play_one_question(recipe("Kitchen", "limits.environment_timeout=0.5"), lines.append)
    assert lines[-2:] == [f"observation: process {os.getpid()}", "turn: hang"]


def test_a_turn_has_the_time_that_a_run_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kitchen, "turns", ["open", "hang"])
    with pytest.raises(RecipeError, match=r"step took more than 0.5 s \(limits.environment_timeout\)"):
        played(recipe("Kitchen", "limits.environment_timeout=0.5"))
    assert Kitchen.closed == ["episode", "source"]


def test_a_question_without_turns_shows_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kitchen, "turns", [])
    _, prompt, none = played(recipe("Kitchen"))
    assert "you are in the kitchen" in prompt
    assert none.endswith("none was played")


def test_what_could_steer_a_terminal_is_not_shown() -> None:
    assert play._short("a\x1b[2Jb\n") == "a\N{REPLACEMENT CHARACTER}[2Jb\n"
