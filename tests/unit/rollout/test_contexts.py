"""Environments that write anew what a turn reads: each such turn begins a sequence of its own."""

import asyncio
from functools import partial
from typing import Any

import pytest

from megatron_empg.environments.base import Message, Opening, StepResult, Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.rollout.episode import Episode, run_episode
from megatron_empg.rollout.service.collect import samples_of
from megatron_empg.rollout.service.readable_episodes import text_of
from tests.support.limited import Limited, limited
from tests.support.stub_engine import StubEngine
from tests.support.tokenizers_for_tests import make_tokenizer

TASK = Task("door", [], {})


def told(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


class Windowed:
    """Shows the last command and the present place; `talk` goes on with the conversation, `leave` ends it."""

    def __init__(self, long: int = 0) -> None:
        self.long = long

    async def reset(self) -> Opening:
        return Opening(told("you are at 0"), anchor="0")

    async def step(self, action: str) -> StepResult:
        if action == "leave":
            return StepResult(None, True, 1.0)
        if action == "talk":
            return StepResult("nobody answers", False)
        context = told(f"you did {action} . you are on . " + "far " * self.long)
        return StepResult(f"after {action}", False, 0.5, anchor=action, context=context)

    async def close(self) -> None:
        pass


def play(chat: ChatTokens, turns: list[str], limits: Limited, environment: Any) -> tuple[Episode, list[list[int]]]:
    waiting = iter([[*chat.turn(turn)] for turn in turns])

    async def playing(url: str) -> Episode:
        async with EngineClient(url, "token") as client:
            return await run_episode(client, chat, environment, TASK, Sampling(1.0), *limits, lambda turn: turn)

    with StubEngine(lambda body: next(waiting)) as engine:
        episode = asyncio.run(playing(engine.url))
    return episode, [body["token_ids"] for body in engine.bodies]


def test_a_turn_reads_its_context_and_nothing_else() -> None:
    chat = ChatTokens(make_tokenizer("chatml"))
    episode, read = play(chat, ["north", "talk", "east", "leave"], limited(9, 50, 400), Windowed)
    assert (episode.outcome, episode.reward, episode.token_drift) == ("success", 2.0, 0)
    north = told("you did north . you are on . ")
    talk: list[Message] = [{"role": "assistant", "content": "talk"}, {"role": "user", "content": "nobody answers"}]
    rendered = [told("you are at 0"), north, [*north, *talk], told("you did east . you are on . ")]
    assert read == [chat.prompt(messages) for messages in rendered]
    assert [turn.sequence for turn in episode.turns] == [0, 1, 1, 2]
    assert episode.prompt_length == len(read[0])
    assert text_of(TASK, episode).question == "you are at 0"
    assert text_of(TASK, Episode("door", 0, 0)).question == "door", "it has not begun"
    for turn, said in zip(episode.turns, ["north", "talk", "east", "leave"], strict=True):
        assert episode.sequences[turn.sequence][turn.start : turn.end] == chat.turn(said)
    assert [turn.observation for turn in episode.turns] == ["after north", "nobody answers", "after east", None]


def test_what_each_turn_reads_is_a_sample_of_the_episode() -> None:
    chat = ChatTokens(make_tokenizer("chatml"))
    episode, read = play(chat, ["north", "talk", "leave"], limited(9, 50, 400), Windowed)
    first, second = samples_of(episode)
    assert first.tokens.tolist() == [*read[0], *chat.turn("north")]
    assert first.turns.tolist() == [[len(read[0]), len(first.tokens)]]
    assert second.tokens.tolist() == [*read[2], *chat.turn("leave")]
    assert len(second.turns) == 2


@pytest.mark.parametrize("family", ["qwen3", "chatml"])
def test_a_context_is_read_where_thoughts_are_stripped_too(family: str) -> None:
    chat = ChatTokens(make_tokenizer(family), history="strip")
    thought = "<think>\nwhy\n</think>\n\n"
    turns = [thought + "talk", thought + "north", thought + "talk", thought + "leave"]

    class Thinking(Windowed):
        async def step(self, action: str) -> StepResult:
            return await super().step(action.rpartition("</think>")[2].strip())

    episode, read = play(chat, turns, limited(9, 80, 600), Thinking)
    assert (episode.outcome, episode.token_drift) == ("success", 0)
    assert [turn.sequence for turn in episode.turns] == [0, 1, 2, 3]
    assert read[2] == chat.prompt(told("you did north . you are on . "))
    assert "why" not in chat.spelled(read[3])


def test_a_context_without_room_ends_the_episode_as_truncated() -> None:
    chat = ChatTokens(make_tokenizer("chatml"))
    for long in (60, 100_000):
        episode, read = play(chat, ["north", "leave"], limited(9, 50, 60), partial(Windowed, long))
        assert (episode.outcome, len(episode.turns), len(read)) == ("truncated", 1, 1)
        assert episode.reward == 0.5
        assert episode.sequences == [episode.tokens]
        assert episode.token_drift == 0


def test_a_context_of_exactly_the_room_is_read() -> None:
    chat = ChatTokens(make_tokenizer("chatml"))
    longest = len(chat.prompt(told("you did north . you are on . " + "far " * 40)))
    for room, turns in ((longest + 1, 2), (longest, 1)):
        limits = limited(2, 20, room)
        episode, _ = play(chat, ["north", "leave"], limits, partial(Windowed, 40))
        assert len(episode.turns) == turns
