"""One multi-turn episode: the policy acts, the environment answers, and every token's origin is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from megatron_empg.environments.base import Environment, Message, Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, EngineError, Generation, Sampling, VersionSpan

Outcome = Literal["success", "failure", "truncated", "error"]


@dataclass(frozen=True)
class Limits:
    """`turns` of an episode, `turn_tokens` sampled in one, `episode_tokens` of the prompt and all that follows."""

    turns: int
    turn_tokens: int
    episode_tokens: int
    turn_timeout: float | None = None
    environment_timeout: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not name.endswith("timeout") and value < 1:
                raise ValueError(f"limit {name} is {value}; it must be at least 1")


@dataclass
class Step:
    """One turn. Tokens [start, end) of the episode are the policy's own, its end token included if it sampled it.

    `finish`: "stop", or "length" when the turn was cut. `policy_versions`: spans relative to `start`.
    """

    start: int
    end: int
    text: str
    finish: str
    policy_versions: list[VersionSpan]
    observation: str | None = None
    info: dict[str, float | str | bool] = field(default_factory=dict)


@dataclass
class Episode:
    """`logprobs` follow the tokens of the steps, one after the other: sum of (end - start) of them.

    An episode that ended in `error` says nothing about the policy and must not train.
    """

    task_id: str
    group: int
    sample: int
    prompt_length: int = 0
    tokens: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reward: float = 0.0
    outcome: Outcome = "error"
    error: str | None = None
    token_drift: int = 0
    engine: str = ""

    @property
    def policy_versions(self) -> tuple[int, int] | None:
        """Oldest and newest policy version that sampled a token of it."""
        versions = [span.version for step in self.steps for span in step.policy_versions]
        return (min(versions), max(versions)) if versions else None


class EngineFailed(RuntimeError):
    """The engine failed during an episode; `episode` is what there is of it, with outcome "error"."""

    def __init__(self, episode: Episode) -> None:
        super().__init__(episode.error)
        self.episode = episode


async def run_episode(
    client: EngineClient,
    chat: ChatTokens,
    make_environment: Callable[[], Environment],
    task: Task,
    sampling: Sampling,
    limits: Limits,
    seed_of_turn: Callable[[int], int],
    *,
    group: int = 0,
    sample: int = 0,
    executor: Executor | None = None,
) -> Episode:
    """Play `task` to its end. Reaching a limit gives "truncated" and reward 0; a failing environment, "error".

    The chat template's end of turn is always a stop token. `executor`: where `environment.step` runs; on the event
    loop when None. Raises EngineFailed (so that the caller can try another engine), nothing else.
    """
    episode = Episode(task.id, group, sample, engine=getattr(client, "url", ""))
    messages: list[Message] = list(task.prompt)
    sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, chat.end_of_turn))
    try:
        episode.tokens = chat.prompt(messages)
        episode.prompt_length = len(episode.tokens)
        async with asyncio.timeout(limits.environment_timeout):
            environment = await _in(executor, make_environment)
        await _play(episode, messages, client, chat, environment, sampling, limits, seed_of_turn, executor)
        episode.token_drift = chat.drift(episode.tokens, messages)
    except EngineError as error:
        _fail(episode, error)
        raise EngineFailed(episode) from error
    except Exception as error:
        _fail(episode, error)
    return episode


async def _play(
    episode: Episode,
    messages: list[Message],
    client: EngineClient,
    chat: ChatTokens,
    environment: Environment,
    sampling: Sampling,
    limits: Limits,
    seed_of_turn: Callable[[int], int],
    executor: Executor | None,
) -> None:
    for turn in range(limits.turns):
        room = limits.episode_tokens - len(episode.tokens)
        if room < 1:
            break
        max_tokens = min(limits.turn_tokens, room)
        generation = await client.generate(
            episode.tokens, sampling, max_tokens=max_tokens, seed=seed_of_turn(turn)
        )
        step = _record(episode, generation, chat)
        messages.append({"role": "assistant", "content": step.text})
        ended_itself = episode.tokens[-1] == chat.end_of_turn
        if not ended_itself and len(episode.tokens) >= limits.episode_tokens:
            break
        try:
            async with asyncio.timeout(limits.environment_timeout):
                result = await _in(executor, partial(environment.step, step.text))
        except TimeoutError:
            raise TimeoutError("limits.environment_timeout") from None
        step.info = result.info
        if result.done:
            episode.reward = result.reward
            success = result.info.get("success", result.reward > 0)
            episode.outcome = "success" if success else "failure"
            return
        assert result.observation is not None, "an environment that goes on must give an observation"
        step.observation = chat.clean(result.observation)
        if turn + 1 < limits.turns:
            messages.append({"role": "user", "content": step.observation})
            episode.tokens += chat.between_turns(step.observation, cut=not ended_itself)
    episode.outcome = "truncated"


def _record(episode: Episode, generation: Generation, chat: ChatTokens) -> Step:
    start = len(episode.tokens)
    episode.tokens += generation.token_ids
    episode.logprobs += generation.logprobs
    step = Step(
        start=start,
        end=len(episode.tokens),
        text=chat.text(generation.token_ids),
        finish=generation.finish_reason,
        policy_versions=generation.policy_versions,
    )
    episode.steps.append(step)
    return step


async def _in(executor, call):
    if executor is None:
        return call()
    return await asyncio.get_running_loop().run_in_executor(executor, call)


def _fail(episode: Episode, error: Exception) -> None:
    episode.outcome = "error"
    episode.reward = 0.0
    episode.error = f"{type(error).__name__}: {error}"
