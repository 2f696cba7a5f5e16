"""Which of the played episodes a reader wants to see where none, or few, are trained on; and how they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from megatron_empg.environments.base import Task
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.service.failures import kind_of_error
from megatron_empg.run.episode_text import EpisodeText, TurnText

PromptOf = Callable[[Episode], str]
"""What the policy read before its first turn."""


def no_prompt(_: Episode) -> str:
    return ""


def text_of(task: Task, episode: Episode, prompt: str = "") -> EpisodeText:
    """An episode as it was played on the task."""
    turns = [TurnText(turn.text, turn.observation) for turn in episode.turns]
    # Where the opening says everything, a task by itself asks nothing.
    asked = task.prompt[-1]["content"] if task.prompt else task.id
    question = episode.question or asked
    return EpisodeText(task.id, question, episode.outcome, turns, prompt, episode.reward, episode.error)


def worth_reading(episodes: Iterable[Episode], count: int, *, errors: int) -> list[Episode]:
    """At most ``errors`` failed episodes with different errors, and ``count`` others of different tasks."""
    failed: dict[str, Episode] = {}
    others: dict[str, Episode] = {}
    for episode in episodes:
        if episode.outcome == "error":
            failed.setdefault(kind_of_error(episode.error), episode)
        else:
            others.setdefault(episode.task_id, episode)
    return [*list(failed.values())[:errors], *list(others.values())[:count]]


def texts_of(tasks: Mapping[str, Task], episodes: Iterable[Episode], prompt_of: PromptOf) -> list[EpisodeText]:
    """The episodes with the prompts that were read. `tasks` by their ids."""
    return [text_of(tasks[episode.task_id], episode, prompt_of(episode)) for episode in episodes]
