"""One question of a recipe, played without a policy: the model's chat template, the environment's own turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from megatron_empg.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from megatron_empg.environments.base import Environment, Message, Task
    from megatron_empg.rollout.chat_tokens import ChatTokens
    from megatron_empg.rollout.service.episode_source import EpisodeSource

LONGEST = 1500
"""Characters of a text that are shown."""
Tell = Callable[[str], None]


def play_one_question(recipe: Recipe, tell: Tell) -> None:
    """Tell what a policy would be shown, turn by turn; the question is a training one.

    Each line is told once it is known, and what is waited for before: on a busy machine an engine may take
    minutes to start. The turns are those that the environment itself tries its tools by. The episode runs where a
    run plays it, on the event loop or in a worker process, within the recipe's waits. Raises RecipeError where the
    prompt cannot be written, a turn fails or a tool's service does not answer.
    """
    asyncio.run(_play_one(recipe, tell))


async def _play_one(recipe: Recipe, tell: Tell) -> None:
    from megatron_empg.rollout.service.episode_source import open_episode_source

    async with AsyncExitStack() as stack:
        try:
            source = await stack.enter_async_context(open_episode_source(recipe.service_config()))
        except Exception as error:  # an environment may be anyone's, and fail in any way
            raise _refused(error) from error
        await _play(recipe, source, tell)


async def _play(recipe: Recipe, source: EpisodeSource, tell: Tell) -> None:
    try:
        (task,) = source.tasks.sample("train", 1, seed=recipe.run.seed)
        turns = source.tasks.rehearse(task)
    except Exception as error:  # likewise
        raise _refused(error) from error
    from megatron_empg.environments.asking import EnvironmentSilent, answer_of

    chat = _chat(recipe)
    try:
        environment = source.make(task)
        try:
            if source.pool is not None:
                name, seconds = recipe.environment.name, recipe.waits.environment
                tell(f"a worker process of {name} starts; then each turn has {seconds:g} s at most")
            told = await _begin(environment, recipe.waits.environment)
            tell(f"one question, {task.id}, as the policy is shown it:")
            tell(_short(_prompt(recipe, chat, task, told)))
            await _turns(environment, turns, recipe.waits.environment, tell)
        finally:
            await answer_of("close", environment.close, recipe.waits.environment)
    except RecipeError:
        raise
    except EnvironmentSilent as error:
        raise RecipeError(
            f"a turn of {task.id} could not be played: {error} (limits.environment_timeout)"
        ) from None
    except Exception as error:  # likewise
        raise RecipeError(f"a turn of {task.id} could not be played: {type(error).__name__}: {error}") from error
    if not turns:
        name = recipe.environment.name
        tell(f"the environment {name} knows no turns to try its tools by: none was played")


async def _begin(environment: Environment, seconds: float) -> list[Message]:
    """What the policy is told once the environment runs."""
    from megatron_empg.environments.asking import answer_of
    from megatron_empg.environments.base import admission
    from megatron_empg.environments.shapes import checked_opening

    await admission(environment)
    opening = checked_opening(await answer_of("reset", environment.reset, seconds))
    return opening.messages


async def _turns(environment: Environment, turns: list[str], seconds: float, tell: Tell) -> None:
    from megatron_empg.environments.asking import answer_of
    from megatron_empg.environments.shapes import checked_result

    for turn in turns:
        tell(f"turn: {_short(turn)}")
        result = checked_result(await answer_of("step", partial(environment.step, turn), seconds))
        if result.done:
            tell(f"the episode ends with reward {result.reward:g}")
            return
        tell(f"observation: {_short(result.observation or '')}")


def _chat(recipe: Recipe) -> ChatTokens:
    """That of the recipe's model, as episodes use it."""
    from megatron_empg.rollout.chat_tokens import ChatTokens

    try:
        return ChatTokens.from_pretrained(recipe.model.path, history=recipe.rollout.history)
    except Exception as error:  # tokenizers and templates fail in as many ways as there are libraries beneath
        raise _unwritten(recipe, error) from error


def _prompt(recipe: Recipe, chat: ChatTokens, task: Task, told: list[Message]) -> str:
    """The tokens that an episode begins with, decoded."""
    from megatron_empg.rollout.chat_use import ChatUse

    try:
        return chat.spelled(chat.prompt([*task.prompt, *told], ChatUse.of(task)))
    except Exception as error:  # likewise
        raise _unwritten(recipe, error) from error


def _unwritten(recipe: Recipe, error: Exception) -> RecipeError:
    said = str(error).strip() or type(error).__name__
    return RecipeError(f"model.path: the chat template of {recipe.model.path} cannot write a prompt: {said}")


def _refused(error: Exception) -> RecipeError:
    return RecipeError(f"environment.settings: {str(error).strip() or type(error).__name__}")


def _short(text: str) -> str:
    """At most `LONGEST` characters, without what could steer a terminal."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in cut
    )
