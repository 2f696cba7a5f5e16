"""What the engines do while batches are played: one look at each engine's counters at the end of a batch.

Nothing here can fail a batch: an engine that tells nothing, or less, is noted in the log once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from megatron_empg.rollout.client import EngineClient, EngineError, RequestRefused
from megatron_empg.rollout.engine_counters import EngineCounters
from megatron_empg.rollout.engine_metrics import EngineStep, engine_metrics

_log = logging.getLogger(__name__)


class EngineWatch:
    """Watches the engines behind `clients`, whose order numbers them from 0. `clock`: seconds, monotonic."""

    def __init__(self, clients: Mapping[str, EngineClient], clock: Callable[[], float] = time.monotonic) -> None:
        self._clients, self._clock = clients, clock
        self._counted: dict[str, EngineCounters] = {}
        """The last reading of each; engines have counted nothing since that belongs to no batch."""
        self._began: float | None = None
        """When the batch began that is played now."""
        self._ended: float | None = None
        """When the last batch ended."""
        self._busy: dict[str, float] = {}
        """Seconds that each engine had been at work by then."""
        self._aside = 0.0
        """Seconds since then in which engines worked for no batch."""
        self._noted: set[str] = set()

    async def batch_begins(self, healthy: Sequence[str]) -> None:
        """Call it before a batch's first request. Engines without a reading are read now."""
        if self._began is not None:  # a batch was abandoned: what was counted for it belongs to nobody
            self._counted = {}
        unread = [url for url in healthy if url not in self._counted]
        self._counted |= await self._read(unread)
        self._began = self._clock()

    async def batch_ends(self, healthy: Sequence[str]) -> dict[str, float]:
        """``engine/…`` of the batch that has been played."""
        now = self._clock()
        began = now if self._began is None else self._began
        readings = await self._read(healthy)
        numbers = {url: number for number, url in enumerate(self._clients)}
        steps: dict[int, EngineStep] = {}
        for url, reading in readings.items():
            earlier = self._counted.get(url)
            counted = EngineCounters() if earlier is None else reading.since(earlier)
            steps[numbers[url]] = EngineStep(counted, now - began, self._idle(url, now))
        self._counted, self._began = readings, None
        self._ended, self._aside = now, 0.0
        self._busy = {url: client.busy.seconds for url, client in self._clients.items()}
        return engine_metrics(steps)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What engines do in this block, such as an evaluation, belongs to no batch."""
        began = self._clock()
        before = {url: client.busy.seconds for url, client in self._clients.items()}
        try:
            yield
        finally:
            self._counted = {}
            self._aside += self._clock() - began
            for url, seconds in before.items():
                if url in self._busy:
                    self._busy[url] += self._clients[url].busy.seconds - seconds

    def _idle(self, url: str, now: float) -> float | None:
        if self._ended is None or url not in self._busy:
            return None
        passed = now - self._ended - self._aside
        if passed <= 0:
            return None
        at_work = self._clients[url].busy.seconds - self._busy[url]
        return min(1.0, max(0.0, 1 - at_work / passed))

    async def _read(self, urls: Sequence[str]) -> dict[str, EngineCounters]:
        """Readings of the engines that answer."""
        pages = await asyncio.gather(*(self._page(url) for url in urls))
        readings: dict[str, EngineCounters] = {}
        for url, page in zip(urls, pages, strict=True):
            if page is None:
                continue
            reading = EngineCounters.read(page)
            if reading.missing:
                names = ", ".join(reading.missing)
                self._note(url, f"tells nothing of {names}: what is made of them is not measured (another vLLM?)")
            readings[url] = reading
        return readings

    async def _page(self, url: str) -> str | None:
        try:
            return await self._clients[url].metrics_page()
        except (EngineError, RequestRefused) as error:
            self._note(url, f"does not tell its metrics: {error}")
            return None

    def _note(self, url: str, what: str) -> None:
        """Say something once."""
        if url not in self._noted:
            self._noted.add(url)
            _log.warning("engine %s %s", url, what)
