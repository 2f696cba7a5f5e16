"""One multi-turn episode: the policy acts, the environment answers, and every token's origin is written down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Literal, TypeVar

from megatron_empg.common.errors import EmpgError
from megatron_empg.common.waits import Waits
from megatron_empg.environments.asking import EnvironmentSilent, answer_of, misbehaviour
from megatron_empg.environments.base import Environment, Message, Opening, StepResult, Task, admission
from megatron_empg.environments.shapes import checked_opening, checked_result
from megatron_empg.environments.workers.errors import WorkerDied
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.chat_use import ChatUse
from megatron_empg.rollout.client import EngineClient, EngineError, Generation, Sampling, VersionSpan
from megatron_empg.rollout.config import RolloutConfig
from megatron_empg.rollout.fleet import NoHealthyEngine
from megatron_empg.rollout.seat import Seat
from megatron_empg.rollout.stripped_history import StrippedHistory
from megatron_empg.rollout.threads import apart
from megatron_empg.rollout.token_bound import TooManyTokens
from megatron_empg.run.timeline import Span

R = TypeVar("R")
Outcome = Literal["success", "failure", "truncated", "error"]


class LostPart(Enum):
    """What went away under an episode that ended in an error: played another time it may go well."""

    WORKER = "worker"
    """The worker process of its environment."""
    ENGINE = "engine"
    """Every engine, and none came back in time."""


# Cutting so much text into tokens takes a millisecond or two; what is longer is cut in a thread.
LARGEST_INLINE_CHARACTERS = 4096
LARGEST_INLINE_TOKENS = 1024
SECONDS_TO_CLOSE = 5.0


@dataclass
class Turn:
    """One act of the policy. Tokens [start, end) of the episode are its own, its end token too if it sampled it.

    `sequence`: which of the episode's sequences they are tokens of. `finish`: "stop", or "length" when it was cut.
    `policy_versions`: spans relative to `start`. `anchor` names the state in which it acted, as `state_number`
    does; `reward` is what the environment gave for it, and `malformed` whether it could read it (None where it
    does not judge). `generation` and `environment`: when the engine sampled it and when the environment acted on
    it, by the service's monotonic clock; None where it did not come so far.
    """

    start: int
    end: int
    text: str
    finish: str
    policy_versions: list[VersionSpan]
    observation: str | None = None
    malformed: bool | None = None
    info: dict[str, float | str | bool] = field(default_factory=dict)
    reward: float = 0.0
    anchor: int = field(kw_only=True)
    sequence: int = field(default=0, kw_only=True)
    generation: Span | None = field(default=None, kw_only=True, compare=False)
    environment: Span | None = field(default=None, kw_only=True, compare=False)

    @property
    def cut(self) -> bool:
        """Whether a limit of tokens, its own or the episode's, ended it."""
        return self.finish == "length"


@dataclass
class Episode:
    """`logprobs` follow the tokens of the turns, one after the other: sum of (end - start) of them.

    `tokens` are the last of its `sequences`, of which there is one for each turn where the policy does not read
    its earlier thoughts again or the environment writes what it reads anew (`earlier` are those before), and one
    alone where neither is so. `prompt_length` is the first's. `reward` is the sum over the turns. `engine`: the
    URL of the one that sampled its last turn. `token_drift`: None when the template would not render the
    conversation. `gold`: the turn that would answer right, in tokens; empty where the environment knows none. An
    episode that ended in `error` says nothing about the policy and must not train. `question`: the message before
    the first turn; empty where the episode has not begun. `lost`: what its error came of, where that may be
    otherwise another time. `whole` and `opening`: when it was played and when its
    environment was reset, as the times of its turns; nothing that is trained depends on them.
    """

    task_id: str
    group: int
    sample: int
    prompt_length: int = 0
    tokens: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reward: float = 0.0
    outcome: Outcome = "error"
    error: str | None = None
    token_drift: int | None = 0
    engine: str = ""
    gold: list[int] = field(default_factory=list)
    earlier: list[list[int]] = field(default_factory=list)
    question: str = ""
    lost: LostPart | None = None
    whole: Span | None = field(default=None, compare=False)
    opening: Span | None = field(default=None, compare=False)

    @property
    def sequences(self) -> list[list[int]]:
        """What the policy read and wrote, in one piece or in one for each turn."""
        return [*self.earlier, self.tokens]

    @property
    def policy_versions(self) -> tuple[int, int] | None:
        """Oldest and newest policy version that sampled a token of it."""
        versions = [span.version for turn in self.turns for span in turn.policy_versions]
        if not versions:
            return None
        return (min(versions), max(versions))


def state_number(text: str) -> int:
    """A signed 64-bit number that stands for a state of the environment: equal texts have equal ones, on every
    machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class EngineFailed(EmpgError, RuntimeError):
    """The engine failed during an episode; `episode` is what there is of it, with outcome "error"."""

    def __init__(self, episode: Episode) -> None:
        super().__init__(episode.error)
        self.episode = episode


class PromptTooLong(EmpgError, ValueError):
    """A task whose prompt leaves no room for a turn: a fault of the data or of the limit."""


class EnvironmentTimeout(EmpgError, RuntimeError):
    """The environment did not answer within its limit."""


async def run_episode(
    client: EngineClient,
    chat: ChatTokens,
    make_environment: Callable[[], Environment],
    task: Task,
    sampling: Sampling,
    rollout: RolloutConfig,
    waits: Waits,
    max_turns: int,
    seed_of_turn: Callable[[int], int],
    *,
    group: int = 0,
    sample: int = 0,
    seat: Seat | None = None,
) -> Episode:
    """Play `task` to its end, of `max_turns` turns at most. What a turn reads, and the turn, are never more than
    `rollout.max_episode_tokens`, at no moment.

    `waits.turn` and `waits.environment` are seconds that one turn's sampling and one call of the environment may
    take. What an environment waits for before it can begin, such as the start of a worker process, is not among
    its calls. Tokens are drawn by `sampling`, which an evaluation chooses for itself.

    Reaching a limit gives "truncated", with the rewards earned until then; a failing environment, "error".
    The chat template's end of turn is always a stop token. With a `seat` a turn whose engine fails is sampled on
    another one, and the episode goes on there. Raises EngineFailed where there is none, nothing else.
    """
    episode = Episode(task.id, group, sample, engine=getattr(client, "url", ""))
    sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, chat.end_of_turn))
    told = [_Conversation(list(task.prompt))]
    play = _Play(episode, task, ChatUse.of(task), told, client, chat, sampling, rollout, waits, seat)
    try:
        await play.whole(make_environment, max_turns, seed_of_turn)
    except (EngineError, NoHealthyEngine) as error:
        _fail(episode, error)
        raise EngineFailed(episode) from error
    except Exception as error:
        _fail(episode, error)
        return episode
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if _is_being_cancelled():
            raise
        _fail(episode, misbehaviour("make", error))
        return episode
    episode.token_drift = await play.drift()
    return episode


@dataclass
class _Conversation:
    """Messages as the template would be given them, and the number of the first sequence that reads them."""

    messages: list[Message]
    first_sequence: int = 0


@dataclass
class _Play:
    """An episode under way. Of its `conversations` the last one goes on; an environment that writes what a turn
    reads anew begins another with it."""

    episode: Episode
    task: Task
    use: ChatUse
    conversations: list[_Conversation]
    client: EngineClient
    chat: ChatTokens
    sampling: Sampling
    rollout: RolloutConfig
    waits: Waits
    seat: Seat | None = None
    anchor: str = ""
    stripped: StrippedHistory | None = None

    async def whole(
        self, make_environment: Callable[[], Environment], max_turns: int, seed_of_turn: Callable[[int], int]
    ) -> None:
        """Make the environment, play in it to the end, and close it whatever happened."""
        began = time.monotonic()
        environment = make_environment()
        try:
            await answer_of("admitted", partial(admission, environment))
            await self.begin(await self.open(environment))
            await self.turns(environment, max_turns, seed_of_turn)
        finally:
            self.episode.whole = Span(began, time.monotonic())
            await _close(environment)

    async def open(self, environment: Environment) -> Opening:
        """What the reset environment says. Raises EnvironmentTimeout."""
        began = time.monotonic()
        opening = checked_opening(await self.call("reset", environment.reset))
        self.episode.opening = Span(began, time.monotonic())
        return opening

    async def begin(self, opening: Opening) -> None:
        """Raises PromptTooLong, and ValueError where the chat template does not fit the task."""
        await asyncio.to_thread(self.chat.fit, self.use)
        self.messages.extend(opening.messages)
        self.anchor = json.dumps(self.messages) if opening.anchor is None else opening.anchor
        try:
            tokens = await self._prompt(self.messages)
        except TooManyTokens as error:
            raise self._prompt_too_long(f"at least {error.fewest}") from None
        if len(tokens) > self._longest_prompt:
            raise self._prompt_too_long(str(len(tokens)))
        self._read(tokens)
        self.episode.prompt_length = len(tokens)
        self.episode.question = self.messages[-1]["content"]
        gold = self.task.gold
        if gold is not None:
            self.episode.gold = await apart(len(gold) > LARGEST_INLINE_CHARACTERS, self.chat.turn, gold)

    @property
    def messages(self) -> list[Message]:
        """What was said so far in the conversation that goes on."""
        return self.conversations[-1].messages

    @property
    def _longest_prompt(self) -> int:
        """Tokens behind which a turn has room for one."""
        return self.rollout.max_episode_tokens - 1

    async def _prompt(self, messages: list[Message]) -> list[int]:
        """A prompt in tokens. Raises TooManyTokens where it is certainly longer than it may be."""
        characters = sum(len(message["content"]) for message in messages)
        large = characters > LARGEST_INLINE_CHARACTERS
        return await apart(large, self.chat.prompt, messages, self.use, most=self._longest_prompt)

    def _read(self, prompt: list[int]) -> None:
        """The next turn reads a prompt and nothing else."""
        self.episode.tokens = prompt
        if self.chat.history == "strip":
            self.stripped = StrippedHistory(self.chat, self.use, prompt)

    def _prompt_too_long(self, tokens: str) -> PromptTooLong:
        room = self.rollout.max_episode_tokens
        return PromptTooLong(
            f"the prompt of task {self.episode.task_id!r} has {tokens} tokens, which leave no room for a turn in "
            f"the {room} of rollout.max_episode_tokens: raise it, or shorten the task or "
            "what environment.settings put before it"
        )

    async def turns(self, environment: Environment, most: int, seed_of_turn: Callable[[int], int]) -> None:
        """Play until the environment or a limit, `most` turns among them, ends the episode."""
        anchor = self.anchor
        for number in range(most):
            turn = await self._sample(seed_of_turn(number), state_number(anchor))
            ended_itself = self.episode.tokens[-1] == self.chat.end_of_turn
            if not ended_itself and self._most_after() < 0:
                break
            began = time.monotonic()
            result = checked_result(await self.call("step", partial(environment.step, turn.text)))
            turn.environment = Span(began, time.monotonic())
            turn.info = result.info
            turn.malformed = result.malformed
            turn.reward = result.reward
            self.episode.reward += turn.reward
            if result.done:
                if result.success is None:
                    success = result.reward > 0
                else:
                    success = result.success
                self.episode.outcome = "success" if success else "failure"
                return
            assert result.observation is not None, "an environment that goes on must give an observation"
            turn.observation = result.observation
            if result.anchor is None:
                anchor = result.observation
            else:
                anchor = result.anchor
            if number + 1 == most or not await self._go_on(result, cut=not ended_itself):
                break
        self.episode.outcome = "truncated"

    async def call(self, doing: str, method: Callable[[], Awaitable[R]]) -> R:
        """What the environment answers, within its time. Raises EnvironmentTimeout."""
        seconds = self.waits.environment
        try:
            return await answer_of(doing, method, seconds)
        except EnvironmentSilent:
            limit = f"{seconds} s (limits.environment_timeout)"
            raise EnvironmentTimeout(f"the environment did not answer to {doing} within {limit}") from None

    async def drift(self) -> int | None:
        """Tokens off the template's rendering. A measurement: whatever it meets, the episode stays what it is."""
        many = sum(map(len, self.episode.sequences)) > LARGEST_INLINE_TOKENS
        try:
            return await apart(many, self._drift)
        except Exception:
            return None

    def _drift(self) -> int:
        sequences = self.episode.sequences
        begins = [conversation.first_sequence for conversation in self.conversations]
        drift = 0
        for conversation, first, behind in zip(
            self.conversations, begins, [*begins[1:], len(sequences)], strict=True
        ):
            own = sequences[first:behind]
            if self.stripped is not None:
                drift += self.chat.drift_of_turns(own, conversation.messages, self.use)
            else:
                drift += self.chat.drift(own[-1], conversation.messages, self.use)
        return drift

    async def _sample(self, seed: int, anchor: int) -> Turn:
        """One turn of the policy's, in the state of that number. Raises EngineError."""
        room = self.rollout.max_episode_tokens - len(self.episode.tokens)
        most = min(self.rollout.max_turn_tokens, room)
        if self.seat is not None:
            self._play_on(await self.seat.now())
        began = time.monotonic()
        try:
            generation = await self._generate(most, seed)
        except EngineError as error:
            generation = await self._generate_elsewhere(error, most, seed)
        took = Span(began, time.monotonic())
        many = len(generation.token_ids) > LARGEST_INLINE_TOKENS
        text = await apart(many, self.chat.text, generation.token_ids)
        turn = _record(self.episode, generation, text, anchor)
        turn.generation = took
        self.messages.append({"role": "assistant", "content": turn.text})
        return turn

    async def _generate(self, most: int, seed: int) -> Generation:
        """What the episode's engine says. Raises EngineError."""
        try:
            async with asyncio.timeout(self.waits.turn):
                generation = await self.client.generate(
                    self.episode.tokens, self.sampling, max_tokens=most, seed=seed
                )
        except TimeoutError:
            seconds = self.waits.turn
            raise EngineError(f"a turn took more than {seconds} s (limits.turn_timeout)") from None
        if not 1 <= len(generation.token_ids) <= most:
            raise EngineError(
                f"the engine sampled {len(generation.token_ids)} tokens where 1 to {most} were asked for"
            )
        if self.seat is not None:
            self.seat.check(generation)
        return generation

    async def _generate_elsewhere(self, error: EngineError, most: int, seed: int) -> Generation:
        """The same turn on the engines that the seat has, one after the other. Raises the last one's error."""
        if self.seat is None:
            raise error
        while True:
            self._play_on(await self.seat.after(error))
            try:
                return await self._generate(most, seed)
            except EngineError as another:
                error = another

    def _play_on(self, client: EngineClient) -> None:
        """Turns are sampled there from now on."""
        self.client = client
        self.episode.engine = getattr(client, "url", "")

    async def _go_on(self, result: StepResult, *, cut: bool) -> bool:
        """Get the next turn to read what a step brought about. False where that has no room."""
        if result.context is not None:
            return await self._begin_anew(result.context)
        assert result.observation is not None, "an environment that goes on must give an observation"
        return await self._observe(result.observation, cut=cut)

    async def _begin_anew(self, context: list[Message]) -> bool:
        """The next turn reads `context` alone. If that has no room, the last turn stays the end."""
        try:
            prompt = await self._prompt(context)
        except TooManyTokens:
            return False
        if len(prompt) > self._longest_prompt:
            return False
        self.episode.earlier.append(self.episode.tokens)
        self.conversations.append(_Conversation(list(context), len(self.episode.earlier)))
        self._read(prompt)
        return True

    async def _observe(self, observation: str, *, cut: bool) -> bool:
        """Append an observation if it, and a token after it, have room. If not, the last turn stays the end."""
        large = len(observation) > LARGEST_INLINE_CHARACTERS
        read = self.episode.tokens
        if self.stripped is not None:
            last = self.episode.turns[-1]
            own = self.episode.tokens[last.start : last.end]
            read = await apart(len(own) > LARGEST_INLINE_TOKENS, self.stripped.with_turn, own)
        most = self.rollout.max_episode_tokens - len(read) - 1
        try:
            tokens = await apart(large, self.chat.between_turns, observation, self.use, cut=cut, most=most)
        except TooManyTokens:
            return False
        if len(tokens) > most:
            return False
        self.messages.append({"role": self.use.role, "content": observation})
        if self.stripped is not None:
            self.episode.earlier.append(self.episode.tokens)
            self.episode.tokens = self.stripped.take(read, tokens)
            return True
        self.episode.tokens += tokens
        return True

    def _most_after(self) -> int:
        """Tokens that may be appended so that one could still be sampled; below 0 where none could now."""
        return self.rollout.max_episode_tokens - len(self.episode.tokens) - 1


def _is_being_cancelled() -> bool:
    """Whether somebody wants this task to end, and no environment raised what looks like it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close(environment: Environment) -> None:
    """Whatever it meets, the episode stays what it is."""
    with suppress(Exception):
        await answer_of("close", environment.close, SECONDS_TO_CLOSE)


def _record(episode: Episode, generation: Generation, text: str, anchor: int) -> Turn:
    start = len(episode.tokens)
    episode.tokens += generation.token_ids
    episode.logprobs += generation.logprobs
    turn = Turn(
        start=start,
        end=len(episode.tokens),
        text=text,
        finish=generation.finish_reason,
        policy_versions=generation.policy_versions,
        anchor=anchor,
        sequence=len(episode.earlier),
    )
    episode.turns.append(turn)
    return turn


def _fail(episode: Episode, error: Exception) -> None:
    episode.outcome = "error"
    episode.reward = 0.0
    episode.error = f"{type(error).__name__}: {error}"
    if isinstance(error, WorkerDied):
        episode.lost = LostPart.WORKER
    elif isinstance(error, NoHealthyEngine):
        episode.lost = LostPart.ENGINE
