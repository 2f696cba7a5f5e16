"""An episode's place on an engine, and the next one when that fails: what has been said so far is kept.

The turn that the engine did not end is sampled elsewhere from the same prefix by the same seed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from megatron_empg.common.waits import Waits
from megatron_empg.rollout.client import EngineClient, EngineError, Generation, RequestRefused
from megatron_empg.rollout.fleet import EngineState, Fleet, NoHealthyEngine

MOST_FAILURES = 1
"""Failures of engines that live which an episode survives, such as an answer that is none."""
MOST_LOST = 3
"""Engines that an episode may lose: a request that ends every engine which plays it must come to an end itself."""


class Seat:
    """An episode's. What `changed` returns ends when any engine's state has changed since the call.

    `moved`: engines that the episode was given up on. `since`: when its engine was last handed to it, in seconds
    of the monotonic clock.
    """

    def __init__(
        self,
        fleet: Fleet,
        clients: Mapping[str, EngineClient],
        waits: Waits,
        changed: Callable[[], Awaitable[object]],
    ) -> None:
        self._fleet, self._clients, self._waits, self._changed = fleet, clients, waits, changed
        self.url = ""
        self.since = 0.0
        self.moved: list[str] = []
        self._failures = 0
        self._expected: int | None = None
        """What the engine must hold at least: the fleet's version when it was handed out."""
        self._limit: asyncio.Timeout | None = None

    async def take(self) -> None:
        """Take the least loaded healthy engine, and wait for one where a run's trainer brings weights to those
        that come back. Raises NoHealthyEngine after `waits.batch`.
        """
        ends = time.monotonic() + self._waits.batch
        while True:
            try:
                self.url = self._fleet.assign(avoid=self.moved)
                return
            except NoHealthyEngine:
                left = ends - time.monotonic()
                if not self._fleet.told or left <= 0:
                    raise
            try:
                await asyncio.wait_for(self._changed(), left)
            except TimeoutError:
                continue

    def leave(self) -> None:
        """Give the engine free; may be called again."""
        if self.url:
            self._fleet.release(self.url)
            self.url = ""

    def begins(self, limit: asyncio.Timeout) -> None:
        """The episode's time, which begins anew on every engine and stands still while it has none."""
        self._limit = limit

    async def now(self) -> EngineClient:
        """The engine that samples the next turn: another one where the episode's own was given up meanwhile.

        Raises NoHealthyEngine.
        """
        if not self._fleet.may_generate(self.url):
            await self._move()
        return self._hand_out()

    def check(self, generation: Generation) -> None:
        """Raises EngineError for tokens of other weights than the policy's, as those of an engine that was started
        again between two turns."""
        expected = self._expected
        if expected is None:
            return
        older = [span.version for span in generation.policy_versions if span.version < expected]
        if older:
            self._fleet.declare_stale(self.url, min(older))
            raise EngineError(
                f"{self.url} sampled with weights of version {min(older)} (-1: nobody told it), where engines "
                f"hold version {expected}: it was started again, or missed new weights"
            )

    async def after(self, error: EngineError) -> EngineClient:
        """The engine that samples the turn in the place of the one that failed of `error`, which is raised where
        trying further is no use. Raises NoHealthyEngine where there is no other one."""
        lives = await self._look()
        self._failures += int(lives)
        lost = len(self.moved) + int(not lives)
        if self._failures > MOST_FAILURES or lost > MOST_LOST + self._failures:
            raise error
        try:
            await self._move()
        except NoHealthyEngine as none:
            raise NoHealthyEngine(f"{none}; the episode's own failed: {error}") from error
        return self._hand_out()

    def _hand_out(self) -> EngineClient:
        self.since, self._expected = time.monotonic(), self._fleet.version
        return self._clients[self.url]

    async def _move(self) -> None:
        self.moved.append(self.url)
        self.leave()
        if self._limit is not None:
            self._limit.reschedule(None)
        await self.take()
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._waits.episode)

    async def _look(self) -> bool:
        """Whether the engine may go on; what became of it is noted.

        It must have generated anything at all while the episode waited a request's time for it: a server can
        answer questions of health while what computes behind it is frozen.
        """
        if not self._fleet.may_generate(self.url):
            return False
        client = self._clients[self.url]
        silent = time.monotonic() - max(self.since, client.answered_at)
        if silent >= 0.99 * self._waits.request or not await client.health():
            self._fleet.declare_dead(self.url)
            return False
        return await self._holds_the_policy(client)

    async def _holds_the_policy(self, client: EngineClient) -> bool:
        """Asked of its process, which may be a new one. Where nobody brings weights, all hold the policy's."""
        if self._fleet.version is None:
            return True
        try:
            version = await client.policy_version()
        except (EngineError, RequestRefused):
            self._fleet.declare_dead(self.url)
            return False
        if not self._fleet.covers(version):
            self._fleet.declare_stale(self.url, version)
        return self._fleet.engines[self.url].state is EngineState.HEALTHY
