"""One question of a recipe, played without a policy: the model's chat template, the environment's own turns."""

from __future__ import annotations

import asyncio
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


def play_one_question(recipe: Recipe) -> list[str]:
    """What a policy would be shown, turn by turn, as lines to print; the question is a training one.

    The turns are those that the environment itself tries its tools by. The episode runs where a run plays it, on
    the event loop or in a worker process, within the recipe's waits. Raises RecipeError where the prompt cannot be
    written, a turn fails or a tool's service does not answer.
    """
    return asyncio.run(_play_one(recipe))


async def _play_one(recipe: Recipe) -> list[str]:
    from megatron_empg.rollout.service.episode_source import open_episode_source

    async with AsyncExitStack() as stack:
        try:
            source = await stack.enter_async_context(open_episode_source(recipe.service_config()))
        except Exception as error:  # an environment may be anyone's, and fail in any way
            raise _refused(error) from error
        return await _played(recipe, source)


async def _played(recipe: Recipe, source: EpisodeSource) -> list[str]:
    try:
        (task,) = source.tasks.sample("train", 1, seed=recipe.run.seed)
        turns = source.tasks.rehearse(task)
    except Exception as error:  # likewise
        raise _refused(error) from error
    from megatron_empg.environments.asking import EnvironmentSilent, answer_of

    chat = _chat(recipe)
    lines = [f"one question, {task.id}, as the policy is shown it:"]
    try:
        environment = source.make(task)
        try:
            told = await _begin(environment, recipe.waits.environment)
            lines.append(_short(_prompt(recipe, chat, task, told)))
            lines += await _turns(environment, turns, recipe.waits.environment)
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
        lines.append(f"the environment {name} knows no turns to try its tools by: none was played")
    return lines


async def _begin(environment: Environment, seconds: float) -> list[Message]:
    """What the policy is told once the environment runs."""
    from megatron_empg.environments.asking import answer_of
    from megatron_empg.environments.base import admission
    from megatron_empg.environments.shapes import checked_opening

    await admission(environment)
    opening = checked_opening(await answer_of("reset", environment.reset, seconds))
    return opening.messages


async def _turns(environment: Environment, turns: list[str], seconds: float) -> list[str]:
    from megatron_empg.environments.asking import answer_of
    from megatron_empg.environments.shapes import checked_result

    lines = []
    for turn in turns:
        result = checked_result(await answer_of("step", partial(environment.step, turn), seconds))
        lines.append(f"turn: {_short(turn)}")
        if result.done:
            lines.append(f"the episode ends with reward {result.reward:g}")
            break
        lines.append(f"observation: {_short(result.observation or '')}")
    return lines


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
