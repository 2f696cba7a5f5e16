"""A crowd of episodes at once against an engine that plays scripted turns, and the memory that they take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psutil
from aiohttp import web

from megatron_empg.environments.base import Task
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.episode import Episode
from megatron_empg.rollout.episodes import Group, Rollout
from megatron_empg.rollout.fleet import Fleet
from megatron_empg.rollout.seeds import derive_seed
from megatron_empg.rollout.service.episode_source import EpisodeSource
from tests.support.limited import limited
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"
RUN_SEED = 7
PATIENCE = 600.0
"""Seconds after which what is not over has failed. No measurement depends on it."""


@dataclass
class GatheringEngine(StubEngine):
    """Answers nobody before `wanted` requests wait for it, so that as many episodes are under way at once.

    `most`: requests that waited together at some time. Requests are not kept.
    """

    wanted: int = 1
    most: int = 0
    gathered: asyncio.Event = field(default_factory=asyncio.Event)

    async def _generate(self, request: web.Request) -> web.Response:
        self.waiting = getattr(self, "waiting", 0) + 1
        self.most = max(self.most, self.waiting)
        if self.waiting >= self.wanted:
            self.gathered.set()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.gathered.wait(), PATIENCE / 4)
            answer = await super()._generate(request)
        finally:
            self.waiting -= 1
        self.bodies.clear()
        return answer


@dataclass(frozen=True)
class Crowd:
    """How the episodes went. `most`: those under way together at some time."""

    episodes: list[Episode]
    most: int

    @property
    def errors(self) -> list[str]:
        """What ended episodes as errors."""
        return [str(episode.error) for episode in self.episodes if episode.outcome == "error"]


async def play_crowd(
    source: EpisodeSource, chat: ChatTokens, tasks: Sequence[Task], turns: Sequence[Sequence[str]]
) -> Crowd:
    """An episode of each task, all at once as far as the source lets them, with these turns of the policy."""
    script = _Script(chat, tasks, turns)
    at_once = source.at_once(len(tasks))
    config, waits, most = limited(
        script.turns, script.longest, 1 << 20, concurrency=at_once, environment=PATIENCE, request=PATIENCE
    )
    groups = [Group(task, number, [0]) for number, task in enumerate(tasks)]
    with GatheringEngine(script.reply, wanted=at_once) as engine:
        rollout = Rollout(
            Fleet([engine.url]), TOKEN, chat, source.make, config, waits, max_turns=most, seed=RUN_SEED
        )
        async with rollout:
            episodes = await rollout.run_group_batch(groups, 0, timeout=PATIENCE)
        return Crowd(episodes, engine.most)


class _Script:
    """What the policy samples, by the seed of the request."""

    def __init__(self, chat: ChatTokens, tasks: Sequence[Task], turns: Sequence[Sequence[str]]) -> None:
        self.turns = max(map(len, turns))
        self._sampled: dict[int, list[int]] = {}
        for task, texts in zip(tasks, turns, strict=True):
            for number, text in enumerate(texts):
                self._sampled[derive_seed(RUN_SEED, 0, task.id, 0, number)] = chat.turn(text)
        self.longest = max(map(len, self._sampled.values()))

    def reply(self, body: dict[str, Any]) -> list[int]:
        return self._sampled[body["sampling_params"]["seed"]]


class TreeMemory:
    """The most memory that this process and all below it take, looked at every so many seconds.

    Use as `with TreeMemory() as memory`. Proportional set sizes (PSS): what processes share counts once.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.peak = 0.0
        self.processes = 0
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            self._look()

    def _look(self) -> None:
        tree = process_tree()
        total = 0.0
        for process in tree:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.peak = max(self.peak, total)
        self.processes = max(self.processes, len(tree))


def process_tree() -> list[psutil.Process]:
    """This process and all below it."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """CPU time that this process and all below it have taken, those that ended and were waited for too."""
    total = 0.0
    for process in process_tree():
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
