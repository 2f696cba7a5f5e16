"""One question of a recipe, played without a policy: the model's chat template, the environment's own turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from megatron_empg.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from megatron_empg.environments.base import Task, TaskSource

LONGEST = 1500
"""Characters of a text that are shown."""


def play_one_question(recipe: Recipe) -> list[str]:
    """What a policy would be shown, turn by turn, as lines to print; the question is a training one.

    The turns are those that the environment itself tries its tools by. Raises RecipeError where the prompt cannot
    be written, a turn fails or a tool's service does not answer.
    """
    from megatron_empg.environments.registry import make_task_source

    acting = recipe.environment
    try:
        source = make_task_source(acting.name, max_turns=acting.max_turns, **acting.settings)
        (task,) = source.sample("train", 1, seed=recipe.run.seed)
    except Exception as error:  # an environment may be anyone's, and fail in any way
        raise RecipeError(f"environment.settings: {error}") from error
    lines = [f"one question, {task.id}, as the policy is shown it:", _prompt(recipe, task)]
    turns = source.rehearse(task)
    if not turns:
        return [*lines, f"the environment {acting.name} knows no turns to try its tools by: none was played"]
    try:
        return [*lines, *asyncio.run(_play(source, task, turns))]
    except Exception as error:  # likewise
        raise RecipeError(f"a turn of {task.id} could not be played: {type(error).__name__}: {error}") from error


def _prompt(recipe: Recipe, task: Task) -> str:
    """By the chat template of the recipe's model."""
    from transformers import AutoTokenizer

    folder = str(recipe.model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        messages: Any = task.prompt
        written = tokenizer.apply_chat_template(
            messages, tools=list(task.tools) or None, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # tokenizers and templates fail in as many ways as there are libraries beneath
        raise RecipeError(f"model.path: the chat template of {folder} cannot write {task.id}: {error}") from error
    return _short(str(written))


async def _play(source: TaskSource, task: Task, turns: list[str]) -> list[str]:
    environment = source.make(task)
    lines = []
    try:
        opening = await environment.reset()
        lines += [f"told: {_short(message['content'])}" for message in opening.messages]
        for turn in turns:
            result = await environment.step(turn)
            lines.append(f"turn: {_short(turn)}")
            if result.done:
                lines.append(f"the episode ends with reward {result.reward:g}")
                break
            lines.append(f"observation: {_short(result.observation or '')}")
    finally:
        await environment.close()
    return lines


def _short(text: str) -> str:
    """At most `LONGEST` characters, without what could steer a terminal."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in cut
    )
