"""Whether a recipe can be run: known before any process starts, and without importing Megatron.

Layout, logging, tasks, tokenizer and the weights' headers are looked at: what would otherwise end the run after
minutes of starting, in a process of its own, ends it here. No tensor is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from megatron_empg.actor.layout_rules import engine_faults, model_faults
from megatron_empg.recipe import Recipe, RecipeError, SftRecipe
from megatron_empg.recipe.preparation import prepare_command
from megatron_empg.weights.mapping.known_models import known_model
from megatron_empg.weights.mapping.model_config import ModelConfig, ModelConfigError

if TYPE_CHECKING:
    from megatron_empg.environments.base import Split, Task, TaskSource
    from megatron_empg.rollout.chat_tokens import ChatTokens
    from megatron_empg.weights.checkpoints.reader import WeightReader

_log = logging.getLogger(__name__)
MOST_IDS = 1000
"""Tasks of each split whose ids are compared."""
PROMPTS = 8
"""Prompts of each split whose length is looked at; the others are much alike."""


def layout_faults(recipe: Recipe | SftRecipe, config: ModelConfig) -> list[str]:
    """Why the recipe's layouts cannot be for this model, whatever the memory; empty when they fit it.

    Each fault names the keys, what was given and what is allowed.
    """
    if isinstance(recipe, SftRecipe):
        return model_faults(recipe.actor, config)
    longest = recipe.rollout.max_episode_tokens
    faults = model_faults(recipe.actor, config, longest_sequence=longest)
    return faults + engine_faults(recipe.engines.tensor_parallel, config)


def check_model(recipe: Recipe | SftRecipe) -> ModelConfig:
    """The model's configuration, after checking that it fits the recipe's layout. Raises RecipeError."""
    try:
        config = ModelConfig.from_folder(recipe.model.path)
    except ModelConfigError as error:
        raise RecipeError(f"model.path: {error}{_or_prepared(recipe)}") from None
    faults = layout_faults(recipe, config)
    if faults:
        raise RecipeError("this recipe cannot be run:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return config


def _or_prepared(recipe: Recipe | SftRecipe) -> str:
    """The other way to a model that is not there, which is that of jobs."""
    prepare = prepare_command(recipe)
    if prepare is None or recipe.model.path.exists() or known_model(recipe.model.path) is None:
        return ""
    return (
        f", or by `{prepare}`, which fetches what {recipe.environment.name} is played with too and tells the jobs "
        "of slurm/ where all of it lies"
    )


def check_recipe(recipe: Recipe | SftRecipe) -> ModelConfig:
    """The same, and that its tasks, tokenizer, weights and logging can be had. Raises RecipeError."""
    config = check_model(recipe)
    _check_logging(recipe)
    _warn_of_lag(recipe)
    source = _task_source(recipe)
    tasks = _tasks(recipe, source)
    chat = _chat(recipe, config)
    _check_uses(recipe, chat, tasks)
    _check_prompts(recipe, chat, tasks)
    _check_gold(recipe, config, chat, tasks[:PROMPTS])
    _check_weights(recipe, config)
    return config


def _check_logging(recipe: Recipe | SftRecipe) -> None:
    from megatron_empg.run.metrics import MetricsError, check_writers

    try:
        check_writers(recipe.logging)
    except MetricsError as error:
        raise RecipeError(str(error)) from None


def _warn_of_lag(recipe: Recipe | SftRecipe) -> None:
    """Lag without a correction is allowed, for it is what a correction is to be compared with."""
    if isinstance(recipe, Recipe) and recipe.rollout.max_lag and recipe.algorithm.correction.name == "none":
        _log.warning(
            "rollout.max_lag is %d with algorithm.correction none: tokens of older policies are trained on as if "
            "the actor had sampled them; algorithm.correction=tis weighs them by what it would have",
            recipe.rollout.max_lag,
        )


def _task_source(recipe: Recipe | SftRecipe) -> TaskSource:
    with _faults_of_the_source():
        return recipe.task_source()


@contextmanager
def _faults_of_the_source() -> Iterator[None]:
    """What an environment raises, as a fault of its settings: its data is read as late as it likes."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RecipeError(f"environment.settings: {error}") from None
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # a plug-in may fail in its own way
        raise RecipeError(f"environment.settings: {type(error).__name__}: {error}") from error


def _tasks(recipe: Recipe | SftRecipe, source: TaskSource) -> list[Task]:
    """Some tasks of every split that the recipe draws from, after checking that there are enough."""
    with _faults_of_the_source():
        to_train_on = len(source.tasks("train"))
        demonstrations = source.demonstrations()
    if not to_train_on:
        raise RecipeError("environment.settings: there is no task to train on: the train split is empty")
    if isinstance(recipe, SftRecipe) and demonstrations is None:
        raise RecipeError(
            f"environment.name is {recipe.environment.name}, which has no demonstrations to learn from: warm a "
            "policy up on another environment, or train without"
        )
    _check_first(source, "train")
    with _faults_of_the_source():
        found = source.sample("train", PROMPTS, seed=recipe.run.seed)
    _check_form("train", found)
    if isinstance(recipe, SftRecipe) or not recipe.evaluation.questions:
        return found
    for split in recipe.evaluation.splits:
        found = found + _fixed(recipe, source, split)
    return found


def _fixed(recipe: Recipe, source: TaskSource, split: Split) -> list[Task]:
    """Some of the questions that evaluations ask of a split."""
    wanted = recipe.evaluation.questions
    with _faults_of_the_source():
        there = len(source.tasks(split))
    if not there:
        raise RecipeError(
            f"evaluation.splits names {split}, which has no tasks under these environment.settings; leave it out, "
            "give the environment data of it, or set evaluation.questions=0 to train without evaluations"
        )
    if there < wanted:
        raise RecipeError(
            f"evaluation.questions is {wanted}, but {split} has {there} tasks; lower the first, or leave the "
            "split out of evaluation.splits"
        )
    _check_first(source, split)
    with _faults_of_the_source():
        found = source.fixed(split, wanted)[:PROMPTS]
    _check_form(split, found)
    return found


def _check_form(split: Split, tasks: list[Task]) -> None:
    """Tasks must be what the seam says. What an opening may still make up for is a warning."""
    from megatron_empg.environments.shapes import conversation_faults

    unfinished: dict[str, str] = {}
    for task in tasks:
        _refuse_ill_formed(split, task)
        # Where the prompt is empty the opening says everything, as in worlds of text commands.
        if task.prompt:
            faults = conversation_faults(list(task.prompt))
        else:
            faults = []
        unfinished |= dict.fromkeys(faults, task.id)
    for fault, name in unfinished.items():
        _log.warning(
            "the prompt of task %r of %s has %s; the environment's Opening must end it with a message that the "
            "policy answers", name, split, fault,
        )  # fmt: skip


def _refuse_ill_formed(split: Split, task: Task) -> None:
    from megatron_empg.environments.shapes import task_faults

    faults = task_faults(task)
    if not faults and any(message["role"] == "system" for message in task.prompt[1:]):
        faults = ["a system message that is not the first"]
    if faults:
        name = getattr(task, "id", None)
        raise RecipeError(f"environment.settings: task {name!r} of {split} has {'; '.join(faults)}")


def _check_first(source: TaskSource, split: Split) -> None:
    """The first tasks, before any is drawn: a draw fails of ill-formed ones in words of its own."""
    with _faults_of_the_source():
        first = list(islice(source.tasks(split), PROMPTS))
    for task in first:
        _refuse_ill_formed(split, task)
    with _faults_of_the_source():
        counts = Counter(task.id for task in islice(source.tasks(split), MOST_IDS))
    twins = [name for name, count in counts.items() if count > 1]
    if twins:
        raise RecipeError(
            f"environment.settings: {split} has two tasks of the id {twins[0]!r}; ids must be unique"
        )


def _chat(recipe: Recipe | SftRecipe, config: ModelConfig) -> ChatTokens:
    """The model's chat template, after checking that episodes can grow under it."""
    from transformers import AutoTokenizer

    from megatron_empg.rollout.chat_tokens import ChatTokens

    folder = recipe.model.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if isinstance(recipe, Recipe):
            history = recipe.rollout.history
        else:
            history = recipe.sft.history
        chat = ChatTokens(tokenizer, history=history)
    except Exception as error:  # tokenizers and templates fail in as many ways as there are libraries beneath
        what = str(error).strip() or type(error).__name__
        raise RecipeError(f"model.path: the tokenizer of {folder} cannot be used: {what}") from error
    if not set(tokenizer("the question of an episode", add_special_tokens=False)["input_ids"]) - {
        tokenizer.unk_token_id
    }:
        # What transformers makes of a folder that has the tokenizer's settings, but not its words.
        raise RecipeError(f"model.path: the tokenizer of {folder} knows no word; its tokenizer.json is missing")
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise RecipeError(
            f"model.path: the tokenizer of {folder} has ids up to {largest}, the model's vocabulary ends at "
            f"{config.vocab_size - 1} (vocab_size {config.vocab_size} in config.json); they are not of one model"
        )
    return chat


def _check_uses(recipe: Recipe | SftRecipe, chat: ChatTokens, tasks: list[Task]) -> None:
    """The chat template must know the tasks' tools and roles, and do with thoughts what the recipe says."""
    from megatron_empg.rollout.chat_use import ChatUse

    for task in tasks:
        try:
            chat.fit(ChatUse.of(task))
        except (ValueError, TypeError) as error:
            raise RecipeError(
                f"model.path: the chat template of {recipe.model.path} does not fit task {task.id!r} of "
                f"environment.name {recipe.environment.name}: {error}"
            ) from error


def _check_prompts(recipe: Recipe | SftRecipe, chat: ChatTokens, tasks: list[Task]) -> None:
    """Prompts must be what the chat template can write, and leave room for a turn."""
    from jinja2 import TemplateError

    from megatron_empg.rollout.chat_use import ChatUse

    if isinstance(recipe, Recipe):
        key, limit = "rollout.max_episode_tokens", recipe.rollout.max_episode_tokens
    else:
        key, limit = "actor.max_tokens_per_microbatch x actor.context_parallel", recipe.actor.longest_sequence
    for task in tasks:
        if not task.prompt:
            continue  # all that the policy is told is in the opening
        try:
            length = len(chat.prompt(task.prompt, ChatUse.of(task)))
        except (TemplateError, ValueError) as error:
            roles = ", ".join(message["role"] for message in task.prompt)
            raise RecipeError(
                f"model.path: the chat template of {recipe.model.path} cannot write the prompt of task "
                f"{task.id!r} (messages of {roles}): {error}. Where it knows no system message, set "
                "environment.settings.prompt to none and warm the policy up, or give the model a template that "
                "has one"
            ) from error
        if length >= limit:
            raise RecipeError(
                f"{key} is {limit}, and the prompt of task {task.id!r} alone has {length} tokens: no turn would "
                "fit; raise it"
            )


def _check_gold(recipe: Recipe | SftRecipe, config: ModelConfig, chat: ChatTokens, tasks: list[Task]) -> None:
    """What an algorithm needs that scores a task's gold turn in the place of each turn of an episode."""
    if not isinstance(recipe, Recipe) or not recipe.algorithm.needs_gold:
        return
    name, limit = recipe.algorithm.name, recipe.rollout.max_episode_tokens
    longest = min(recipe.actor.longest_sequence, config.max_position_embeddings)
    for task in tasks:
        if task.gold is None:
            raise RecipeError(
                f"algorithm.name is {name}, which asks how likely the policy finds a right answer, and the "
                f"environment {recipe.environment.name} names none for task {task.id!r}; choose another algorithm"
            )
        tokens = len(chat.turn(task.gold))
        room = longest - tokens + 1  # it may stand in the place of an episode's last token
        if limit > room:
            raise RecipeError(
                f"rollout.max_episode_tokens is {limit}, and algorithm.name {name} scores the gold turn of task "
                f"{task.id!r} ({tokens} tokens) at the end of an episode: the actor takes no more than {longest} "
                "(the smaller of actor.max_tokens_per_microbatch x actor.context_parallel and the model's "
                f"max_position_embeddings); lower the first to {room} or less, or raise the microbatch"
            )


def _check_weights(recipe: Recipe | SftRecipe, config: ModelConfig) -> None:
    """Names, shapes, types and sizes, by the files' headers."""
    from megatron_empg.weights.checkpoints.errors import CheckpointError
    from megatron_empg.weights.checkpoints.hugging_face import HuggingFaceReader
    from megatron_empg.weights.checkpoints.open_weights import open_weights

    if isinstance(recipe, SftRecipe) and recipe.model.initialise == "random":
        return
    folder = recipe.model.path
    # Engines start from safetensors, whatever the actor starts from.
    opened: WeightReader
    if isinstance(recipe, Recipe):
        opened = HuggingFaceReader(folder, config)
    else:
        opened = open_weights(folder, config)
    try:
        with opened as reader:
            for note in reader.notes:
                _log.warning(note)
    except CheckpointError as error:
        raise RecipeError(f"model.path: {error}") from None
