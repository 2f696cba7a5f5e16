"""Engines find their way back through the rollout service, and a service that was started again plays the same."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from megatron_empg.environments.base import Task
from megatron_empg.launch.ports import free_port
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.chat_tokens import ChatTokens
from megatron_empg.rollout.client import EngineClient, EngineError
from megatron_empg.rollout.episodes import Rollout
from megatron_empg.rollout.fleet import EngineState, Fleet
from megatron_empg.rollout.service.batch import Batch, account_in
from megatron_empg.rollout.service.client import (
    RolloutServiceClient,
    RolloutServiceClientError,
    RolloutServiceGoneError,
)
from megatron_empg.rollout.service.engine_keeper import OFFER_SECONDS, EngineKeeper
from megatron_empg.rollout.service.rollout_service import RolloutService
from megatron_empg.rollout.service.server import application
from megatron_empg.rollout.service.stale_engines import StaleEngines
from megatron_empg.run.metric_names import by_clock
from tests.support.limited import limited
from tests.support.one_turn import OneTurn, by_seed, questions_of
from tests.support.recipes import quickstart
from tests.support.serving import serving, wait_for
from tests.support.stub_engine import StubEngine

TOKEN = "0123456789abcdef"


class Questions:
    """Twelve, in an order that the seed says."""

    def __init__(self) -> None:
        self.all = questions_of([""] * 12)

    def sample(self, split: str, count: int, seed: int) -> list[Task]:
        first = seed % len(self.all)
        return [*self.all[first:], *self.all[:first]][:count]

    def fixed(self, split: str, count: int) -> list[Task]:
        return self.all[:count]


def recipe(*more: str) -> Recipe:
    few = ("rollout.groups=4", "rollout.group_size=2", "evaluation.questions=6", "environment.max_turns=2")
    return quickstart(*few, "algorithm.name=grpo", *more)


@asynccontextmanager
async def opened(chat: ChatTokens, urls: list[str], given: Recipe) -> AsyncIterator[RolloutService]:
    """A driver as a run's, whose keeper is at work."""
    config, _, turns = limited(2, 50, 500, concurrency=64)
    fleet = Fleet(urls, told=True)
    async with Rollout(fleet, TOKEN, chat, OneTurn, config, given.waits, max_turns=turns, seed=7) as rollout:
        driver = RolloutService(given.service_config(), Questions(), rollout)  # type: ignore[arg-type]
        keeping = asyncio.create_task(driver.keeper.run())
        try:
            yield driver
        finally:
            keeping.cancel()
            await driver.close()


def served(
    chat: ChatTokens, urls: list[str], port: int, given: Recipe
) -> AbstractContextManager[threading.Thread]:
    return serving(application(opened(chat, urls, given), TOKEN), port)


def learnt_from(batch: bytes | StaleEngines) -> tuple[list[int], list[float], dict[str, float]]:
    assert isinstance(batch, bytes)
    read = Batch.from_bytes(batch)
    metrics = {name: value for name, value in read.metrics.items() if not by_clock(name)}
    return torch_tokens(read), read.experience.rewards.tolist(), metrics


def torch_tokens(batch: Batch) -> list[int]:
    return [int(token) for sample in batch.experience.samples for token in sample.tokens]


def test_a_batch_is_asked_for_again_once_its_engine_was_refitted_and_goes_on_meanwhile(chat: ChatTokens) -> None:
    """The only engine dies in the middle of the batch, comes back with other weights, and gets the policy's."""
    port = free_port()
    with StubEngine(by_seed(chat), version="0") as engine, served(chat, [engine.url], port, recipe()):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        client.hold([engine.url], 0)
        undisturbed = learnt_from(client.rollout(0))
        engine.bodies.clear()
        engine.delay = 0.3

        def dies_and_comes_back() -> None:
            wait_for(lambda: len(engine.bodies) >= 4)
            engine.gone, engine.delay = True, 0.0
            time.sleep(0.5)
            engine.version = "default"
            engine.gone = False

        disturbing = threading.Thread(target=dies_and_comes_back)
        disturbing.start()
        answer = client.rollout(0)
        assert answer == StaleEngines((engine.url,))
        disturbing.join()
        engine.version = "0"
        client.hold([engine.url], 0)
        assert learnt_from(client.rollout(0)) == undisturbed


@pytest.mark.parametrize("asks", ["evaluate", "probe"])
def test_whatever_is_asked_waits_for_the_only_engine(chat: ChatTokens, asks: str) -> None:
    port = free_port()
    engine = StubEngine(by_seed(chat), version="0", delay=0.2)
    with engine, served(chat, [engine.url], port, recipe()):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        client.hold([engine.url], 0)
        ask = client.probe if asks == "probe" else partial(client.evaluate, "test_id", False)
        engine.version = "default"
        assert ask() == StaleEngines((engine.url,))
        engine.version = "0"
        client.hold([engine.url], 0)
        answer = ask()
        assert answer == 8 if asks == "probe" else getattr(answer, "errors", None) == 0


def test_engines_that_serve_are_not_disturbed_by_one_that_is_refitted(chat: ChatTokens) -> None:
    port = free_port()
    one, two = StubEngine(by_seed(chat), version="1"), StubEngine(by_seed(chat), version="default")
    with one, two, served(chat, [one.url, two.url], port, recipe()):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        client.hold([one.url], 1)  # the other one was not reached
        assert client.rollout(1) == StaleEngines((two.url,))
        assert isinstance(client.rollout(1), bytes), "named once, it is not waited for"
        two.version = "1"
        client.hold([two.url], 1)
        batch = client.rollout(2)
        assert isinstance(batch, bytes)
        metrics = Batch.from_bytes(batch).metrics
        assert metrics["rollout/engines_healthy"] == 2
        assert metrics["rollout/engine_refits"] == 1


def test_an_engine_that_is_added_while_a_run_goes_on_is_refitted_and_given_work(chat: ChatTokens) -> None:
    port = free_port()
    one, added = StubEngine(by_seed(chat), version="1"), StubEngine(by_seed(chat), version="default")
    with one, added, served(chat, [one.url], port, recipe()):
        service = f"http://127.0.0.1:{port}"
        client = RolloutServiceClient(service, TOKEN, timeout=60.0)
        client.hold([one.url], 1)
        asked = {"engines": [added.url + "/"]}
        assert httpx.post(f"{service}/engines", json=asked, trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.post(f"{service}/engines", json=asked, headers=headers, trust_env=False).status_code == 200
        assert client.rollout(1) == StaleEngines((added.url,))
        assert added.bodies == []
        added.version = "1"
        client.hold([added.url], 1)
        assert isinstance(client.rollout(1), bytes)
        one.bodies.clear()
        assert isinstance(client.rollout(2), bytes)
        assert (len(one.bodies), len(added.bodies) >= 4) == (4, True)


@pytest.mark.parametrize("body", ['{"engines": "http://10.0.0.7:8000"}', '{"engines": ["ftp://x"]}', "{", '"x"'])
def test_an_engine_whose_address_cannot_be_is_refused_and_none_is_added(chat: ChatTokens, body: str) -> None:
    port = free_port()
    with StubEngine(by_seed(chat), version="1") as one, served(chat, [one.url], port, recipe()):
        service = f"http://127.0.0.1:{port}"
        client = RolloutServiceClient(service, TOKEN, timeout=60.0)
        client.hold([one.url], 1)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{service}/engines", content=body, headers=headers, trust_env=False)
        assert answer.status_code == 400
        assert answer.json()["error"]
        batch = client.rollout(1)
        assert isinstance(batch, bytes)
        metrics = Batch.from_bytes(batch).metrics
        assert (metrics["rollout/engines_stale"], metrics["rollout/engines_dead"]) == (0, 0)


def test_a_service_that_was_started_again_is_told_and_plays_the_same_batch(chat: ChatTokens) -> None:
    port = free_port()
    with StubEngine(by_seed(chat), version="5") as engine:
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0, patience=30.0)
        with served(chat, [engine.url], port, recipe()):
            client.hold([engine.url], 5)
            undisturbed = learnt_from(client.rollout(5))
        late: list[StaleEngines | bytes] = []
        asking = threading.Thread(target=lambda: late.append(client.rollout(5)))
        asking.start()
        time.sleep(1.0)  # nobody listens
        with served(chat, [engine.url], port, recipe()):
            asking.join(30)
            assert late == [StaleEngines(())], "it is told, and asked again"
            assert learnt_from(client.rollout(5)) == undisturbed


def test_an_engine_that_nobody_refitted_stays_stale_when_another_one_was(chat: ChatTokens) -> None:
    port = free_port()
    one, two = StubEngine(by_seed(chat), version="5"), StubEngine(by_seed(chat), version="5")
    with one, two, served(chat, [one.url, two.url], port, recipe()):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        client.hold([one.url, two.url], 5)
        one.version = two.version = "default"  # both were started again
        named: set[str] = set()
        while named != {one.url, two.url}:
            answer = client.rollout(5)
            assert isinstance(answer, StaleEngines)
            named |= set(answer.urls)
        one.version = "5"
        client.hold([one.url], 5)
        client.rollout(5)  # names the other one again
        batch = client.rollout(5)
        assert isinstance(batch, bytes)
        assert Batch.from_bytes(batch).metrics["rollout/engine_refits"] == 1


LAG = ("rollout.max_lag=1", "algorithm.correction=tis", "limits.sync_timeout=60")


def test_a_service_that_was_started_again_during_a_refit_is_told_where_its_stream_begins(chat: ChatTokens) -> None:
    """It first hears of the refit's end, and so knows of weights."""
    port = free_port()
    with StubEngine(by_seed(chat), version="1") as engine:
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0, patience=30.0)
        with served(chat, [engine.url], port, recipe(*LAG)):
            client.hold([engine.url], 0)
            client.published(0, None)
            first = client.rollout(0)
            assert isinstance(first, bytes)
            client.hold([engine.url], 1)
            client.published(1, account_in(first))
        with served(chat, [engine.url], port, recipe(*LAG)):
            client.hold([engine.url], 1)
            assert client.rollout(1) == StaleEngines(()), "it is told, and asked again"
            second = client.rollout(1)
            assert isinstance(second, bytes)
            account = account_in(second)
            assert account is not None
            assert account.batches == 2


def test_a_stream_that_nobody_began_is_no_endless_asking(chat: ChatTokens) -> None:
    port = free_port()
    with StubEngine(by_seed(chat), version="0") as engine, served(chat, [engine.url], port, recipe(*LAG)):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        client.hold([engine.url], 0)
        with pytest.raises(RolloutServiceClientError, match="answered 412: step 0: no weights were published yet"):
            client.rollout(0)


def test_a_service_that_knows_of_no_weights_plays_nothing(chat: ChatTokens) -> None:
    port = free_port()
    with StubEngine(by_seed(chat), version="5") as engine, served(chat, [engine.url], port, recipe()):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        with pytest.raises(RolloutServiceClientError, match="answered 412: it has not been told"):
            client.rollout(5)
        assert engine.bodies == []


def test_a_service_that_stays_away_is_an_accident(chat: ChatTokens) -> None:
    client = RolloutServiceClient(f"http://127.0.0.1:{free_port()}", TOKEN, timeout=5.0, patience=1.0)
    began = time.monotonic()
    with pytest.raises(RolloutServiceGoneError, match="ConnectError") as gone:
        client.rollout(0)
    assert gone.value.accident
    assert time.monotonic() - began >= 1.0


def test_a_batch_that_no_engine_was_left_for_is_an_accident(chat: ChatTokens) -> None:
    port = free_port()
    short = ("episode", "turn", "request")
    few = [f"limits.{name}_timeout={1.5 - number / 10}" for number, name in enumerate(short)]
    given = recipe("limits.rollout_timeout=20", "limits.round_timeout=2", "limits.environment_timeout=1", *few)
    with StubEngine(by_seed(chat), version="0") as engine, served(chat, [engine.url], port, given):
        client = RolloutServiceClient(f"http://127.0.0.1:{port}", TOKEN, timeout=60.0)
        client.hold([engine.url], 0)
        engine.gone = True
        with pytest.raises(RolloutServiceClientError, match="8 of 8 episodes ended in an error") as lost:
            client.rollout(0)
        assert lost.value.accident


# --- the keeper --------------------------------------------------------------------------------------------------


def kept(engine: StubEngine, work: Callable[[EngineKeeper, Fleet], Any], clock: Callable[[], float]) -> None:
    async def run() -> None:
        fleet = Fleet([engine.url], told=True)
        fleet.refitted([engine.url], 3)
        async with EngineClient(engine.url, TOKEN) as client:
            await work(EngineKeeper(fleet, {engine.url: client}, clock), fleet)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(
    ("version", "state"),
    [("3", EngineState.HEALTHY), ("default", EngineState.STALE), ("2", EngineState.STALE)],
)
def test_a_dead_engine_is_what_its_first_token_says(chat: ChatTokens, version: str, state: EngineState) -> None:
    with StubEngine(by_seed(chat), version=version) as engine:

        async def work(keeper: EngineKeeper, fleet: Fleet) -> None:
            fleet.declare_dead(engine.url)
            engine.gone = True
            await keeper.look()
            assert fleet.dead() == [engine.url]
            engine.gone = False
            await keeper.look()
            assert fleet.engines[engine.url].state is state

        kept(engine, work, time.monotonic)


def test_one_that_answers_while_nothing_computes_behind_it_stays_dead(
    chat: ChatTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_empg.rollout.client.SHORT", aiohttp.ClientTimeout(total=0.3))
    with StubEngine(by_seed(chat), version="3", frozen=True) as engine:

        async def work(keeper: EngineKeeper, fleet: Fleet) -> None:
            fleet.declare_dead(engine.url)
            await keeper.look()
            assert fleet.dead() == [engine.url]

        kept(engine, work, time.monotonic)


@pytest.mark.parametrize("said", ["[]", "{}", '{"weight_version": null}', '{"weight_version": "new"}', "<html>"])
def test_an_engine_that_does_not_say_its_weights_is_taken_for_one_that_failed(chat: ChatTokens, said: str) -> None:
    class Other(StubEngine):
        async def _weight_info(self, request: web.Request) -> web.Response:
            return web.Response(text=said)

    with Other(by_seed(chat)) as engine:

        async def work(keeper: EngineKeeper, fleet: Fleet) -> None:
            with pytest.raises(EngineError, match="does not say its weights"):
                await keeper._clients[engine.url].policy_version()

        kept(engine, work, time.monotonic)


def test_a_dead_engine_that_samples_no_token_stays_dead(chat: ChatTokens) -> None:
    class Silent(StubEngine):
        def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
            nothing = {"token_ids": [], "finish_reason": "length", "logprobs": {"content": []}}
            return {"choices": [nothing | {"weight_versions": []}]}

    with Silent(by_seed(chat)) as engine:

        async def work(keeper: EngineKeeper, fleet: Fleet) -> None:
            fleet.declare_dead(engine.url)
            await keeper.look()
            assert fleet.dead() == [engine.url]

        kept(engine, work, time.monotonic)


def test_a_stale_engine_is_named_now_and_then_until_it_is_refitted_or_dies(chat: ChatTokens) -> None:
    now = 0.0
    with StubEngine(by_seed(chat), version="default") as engine:

        async def work(keeper: EngineKeeper, fleet: Fleet) -> None:
            nonlocal now
            assert keeper.wanting() == []
            fleet.declare_stale(engine.url, -1)
            assert keeper.wanting() == [engine.url]
            assert keeper.wanting() == []
            now += OFFER_SECONDS
            assert keeper.wanting() == [engine.url]
            keeper.refitted()
            assert keeper.wanting() == [engine.url]
            await keeper.look()
            assert fleet.stale() == [engine.url]
            engine.gone = True
            await keeper.look()
            assert (fleet.stale(), fleet.dead()) == ([], [engine.url])

        kept(engine, work, lambda: now)
