"""Engines that were given up find their way back: they are asked again, and named to the trainer for weights."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from megatron_empg.rollout.client import EngineClient, EngineError, RequestRefused
from megatron_empg.rollout.fleet import Fleet

_log = logging.getLogger(__name__)
KNOCK_SECONDS = 1.0
"""Between two rounds of questions to engines that may not generate."""
OFFER_SECONDS = 10.0
"""Before the trainer is told again of an engine that wants weights: the last time it could not bring them."""


class EngineKeeper:
    """Keeps the states of a fleet's engines up to date. `clock`: seconds, monotonic.

    A DEAD engine is back once it samples a token, whose version says what it holds: a server may answer while
    nothing computes behind it. A STALE one is DEAD again once its server answers no more.
    """

    def __init__(
        self,
        fleet: Fleet,
        clients: Mapping[str, EngineClient],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._clients, self._clock = fleet, clients, clock
        self._offered: dict[str, float] = {}

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # nobody else would bring an engine back
                _log.exception("engines that may not generate could not be asked")
            await asyncio.sleep(KNOCK_SECONDS)

    async def look(self) -> None:
        """One question to every engine that may not generate; none before it is known which weights there are."""
        if self._fleet.told and self._fleet.version is None:
            return
        dead, stale = self._fleet.dead(), self._fleet.stale()
        await asyncio.gather(*map(self._knock, dead), *map(self._ask, stale))

    def wanting(self) -> list[str]:
        """Engines that wait for weights and of which the trainer was not told lately; it is told of them now."""
        if self._fleet.version is None:
            return []
        now = self._clock()
        due = [url for url in self._fleet.stale() if now - self._told(url) >= OFFER_SECONDS]
        self._offered |= dict.fromkeys(due, now)
        return due

    def refitted(self) -> None:
        """Weights were sent: whoever lacks them still may be named at once."""
        self._offered = {}

    def _told(self, url: str) -> float:
        return self._offered.get(url, float("-inf"))

    async def _knock(self, url: str) -> None:
        try:
            version = await self._clients[url].knock()
        except (EngineError, RequestRefused):
            return
        self._fleet.came_back(url, version)
        state = self._fleet.engines[url].state.value
        _log.warning("engine %s answers again, with weights of version %d: %s", url, version, state)

    async def _ask(self, url: str) -> None:
        if not await self._clients[url].health():
            self._fleet.declare_dead(url)
