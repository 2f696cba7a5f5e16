"""What the engines did in a batch, read from servers that answer as engines do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from megatron_empg.rollout.client import EngineClient, Sampling
from megatron_empg.rollout.service.engine_watch import EngineWatch
from tests.support.engine_pages import page
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"


@dataclass
class CountingEngine(StubEngine):
    """Also answers /metrics, with what it `generated`; only to who shows the token."""

    generated: float = 1000.0
    """Before anybody looks: an engine counts from its start."""
    looks: int = 0
    silent: bool = False
    """Whether questions for /metrics wait for ever."""

    async def _start(self) -> None:
        app = web.Application()
        app.add_routes([web.post("/inference/v1/generate", self._generate), web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _metrics(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        self.looks += 1
        if self.silent:
            await asyncio.sleep(3600)
        return web.Response(text=page({"generation_tokens_total": self.generated}))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = super()._answer(body)
        self.generated += len(answer["choices"][0]["token_ids"])
        return answer


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tokens(_: dict[str, Any]) -> list[int]:
    return [7, 8, 9, 2]


def watched(
    urls: list[str], work: Callable[[EngineWatch, dict[str, EngineClient], Clock], Awaitable[None]]
) -> None:
    async def run() -> None:
        clock = Clock()
        async with AsyncExitStack() as stack:
            clients = {url: await stack.enter_async_context(EngineClient(url, TOKEN, timeout=10)) for url in urls}
            for client in clients.values():
                client.busy._clock = clock
            await work(EngineWatch(clients, clock), clients, clock)

    asyncio.run(run())


async def generate(client: EngineClient, clock: Clock | None = None, seconds: float = 0.0) -> None:
    """One generation of four tokens, which takes so many of the clock's seconds."""
    with client.busy.work():  # from before the request to after it, as the clock passes here
        await client.generate([1, 2], Sampling(1.0, (2,)), max_tokens=8, seed=0)
        if clock is not None:
            clock.now += seconds


def test_a_batch_has_what_was_counted_between_its_begin_and_its_end() -> None:
    with CountingEngine(tokens) as one, CountingEngine(tokens) as other:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            urls = [one.url, other.url]
            await watch.batch_begins(urls)
            await generate(clients[one.url], clock, 4.0)
            await generate(clients[other.url])
            await generate(clients[other.url])
            metrics = await watch.batch_ends(urls)
            assert metrics["engine/0/tokens_per_second"] == 1.0
            assert metrics["engine/1/tokens_per_second"] == 2.0
            assert metrics["engine/tokens_per_second_worst"] == 1.0
            assert "engine/idle_share_mean" not in metrics, "nobody knows what was before the first batch"

            await watch.batch_begins(urls)
            clock.now += 2.0
            metrics = await watch.batch_ends(urls)
            assert metrics["engine/tokens_per_second_mean"] == 0.0
            assert (one.looks, other.looks) == (3, 3), "one look a batch, and one before the first"

        watched([one.url, other.url], work)


def test_idle_is_the_time_without_a_request_since_the_last_batch() -> None:
    with CountingEngine(tokens) as engine:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            client, urls = clients[engine.url], [engine.url]
            await watch.batch_begins(urls)
            await watch.batch_ends(urls)
            clock.now += 6.0  # the trainer learns
            await watch.batch_begins(urls)
            await generate(client, clock, 3.0)
            clock.now += 1.0  # a tool
            metrics = await watch.batch_ends(urls)
            assert metrics["engine/idle_share_mean"] == pytest.approx(0.7)
            assert metrics["engine/tokens_per_second_mean"] == 1.0, "over the rollout alone"

        watched([engine.url], work)


def test_an_evaluation_counts_in_no_batch() -> None:
    with CountingEngine(tokens) as engine:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            client, urls = clients[engine.url], [engine.url]
            await watch.batch_begins(urls)
            await watch.batch_ends(urls)
            clock.now += 1.0
            with watch.aside():
                await generate(client, clock, 50.0)
            clock.now += 1.0
            await watch.batch_begins(urls)
            await generate(client, clock, 2.0)
            metrics = await watch.batch_ends(urls)
            assert metrics["engine/tokens_per_second_mean"] == 2.0
            assert metrics["engine/idle_share_mean"] == pytest.approx(0.5)

        watched([engine.url], work)


def test_a_batch_that_was_abandoned_counts_in_no_other() -> None:
    with CountingEngine(tokens) as engine:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            urls = [engine.url]
            await watch.batch_begins(urls)
            await generate(clients[engine.url], clock, 1.0)
            await watch.batch_begins(urls)
            await generate(clients[engine.url], clock, 4.0)
            metrics = await watch.batch_ends(urls)
            assert metrics["engine/tokens_per_second_mean"] == 1.0

        watched([engine.url], work)


def test_an_engine_that_came_between_counts_from_its_first_reading() -> None:
    with CountingEngine(tokens) as one, CountingEngine(tokens) as late:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            await watch.batch_begins([one.url])
            await generate(clients[one.url], clock, 4.0)
            metrics = await watch.batch_ends([one.url, late.url])
            assert metrics["engine/0/tokens_per_second"] == 1.0
            assert "engine/1/tokens_per_second" not in metrics, "what it counted before is not this batch's"

        watched([one.url, late.url], work)


def test_an_engine_that_tells_nothing_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    with StubEngine(tokens) as engine, caplog.at_level(logging.WARNING):

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            for _ in range(3):
                await watch.batch_begins([engine.url])
                clock.now += 1.0
                assert await watch.batch_ends([engine.url]) == {}

        watched([engine.url], work)
    assert len(caplog.messages) == 1
    assert f"engine {engine.url} does not tell its metrics" in caplog.text
    assert "404" in caplog.text


def test_names_that_an_engine_lacks_are_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    with CountingEngine(tokens) as engine, caplog.at_level(logging.WARNING):

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            for _ in range(2):
                await watch.batch_begins([engine.url])
                clock.now += 1.0
                await watch.batch_ends([engine.url])

        watched([engine.url], work)
    assert len(caplog.messages) == 1
    assert "vllm:prefix_cache_hits_total" in caplog.text
    assert "generation_tokens" not in caplog.text


def test_an_engine_that_is_frozen_holds_no_batch_for_long(caplog: pytest.LogCaptureFixture) -> None:
    with CountingEngine(tokens) as lives, CountingEngine(tokens, silent=True) as frozen:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            urls = [lives.url, frozen.url]
            async with asyncio.timeout(8.0):  # one question to an engine may else take 10 s
                await watch.batch_begins(urls)
                await generate(clients[lives.url], clock, 4.0)
                metrics = await watch.batch_ends(urls)
            assert metrics["engine/tokens_per_second_worst"] == 1.0, "of the one that answers"

        watched([lives.url, frozen.url], work)
    (said,) = [message for message in caplog.messages if message.startswith(f"engine {frozen.url} ")]
    assert "does not tell its metrics" in said
    assert said.endswith("no answer after 2 s")


def test_an_engine_that_is_gone_costs_no_batch() -> None:
    dies = CountingEngine(tokens)
    dies.__enter__()
    with CountingEngine(tokens) as lives:

        async def work(watch: EngineWatch, clients: dict[str, EngineClient], clock: Clock) -> None:
            urls = [lives.url, dies.url]
            await watch.batch_begins(urls)
            await asyncio.to_thread(dies.__exit__, None, None, None)
            await generate(clients[lives.url], clock, 4.0)
            metrics = await watch.batch_ends(urls)
            assert metrics["engine/tokens_per_second_mean"] == 1.0

        watched([lives.url, dies.url], work)
