"""A transfer ends with the engine that fails, or when its time is up; gloo is real here, and engines stand-ins."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_empg.launch.ports import free_port
from megatron_empg.weights.sync import broadcast_sender
from megatron_empg.weights.sync.broadcast import open_store, rendezvous_port
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.transfer import WeightPublisher
from tests.support.weight_engines import ReceivingEngine, Source

LIMIT = 3.0
"""Seconds of a publication; gloo lets go of a broadcast that nobody takes when half of them are over."""
LONG = 60.0
"""Seconds that an engine waits when nobody wakes it. A test that takes half of them has waited for it."""


@pytest.fixture
def engines() -> Iterator[list[ReceivingEngine]]:
    made = [ReceivingEngine(), ReceivingEngine()]
    yield made
    for engine in made:
        engine.stop()


def publisher(engines: list[ReceivingEngine], limit: float = LIMIT) -> WeightPublisher:
    """One that has met the engines."""
    made = WeightPublisher([engine.url for engine in engines], "t", device="cpu", timeout=limit)
    made.connect(Source())
    return made


@contextmanager
def failing(match: str) -> Iterator[SimpleNamespace]:
    """WeightTransferError within the block; `seconds` it took."""
    told, started = SimpleNamespace(), time.monotonic()
    with pytest.raises(WeightTransferError, match=match) as caught:
        yield told
    told.seconds, told.engines = time.monotonic() - started, caught.value.engines


def test_an_engine_that_refuses_ends_a_transfer(engines: list[ReceivingEngine]) -> None:
    publishing = publisher(engines)
    engines[1].refuses["update_weights"] = 500
    with failing("answered 500") as told:
        publishing.publish(Source(), 1)
    assert told.engines == [engines[1].url]
    assert told.seconds < LONG / 2
    assert "resume" not in engines[0].asked, "it may hold half of the weights"


def test_an_engine_that_died_ends_a_transfer(engines: list[ReceivingEngine]) -> None:
    publishing = publisher(engines, limit=2 * LONG)
    engines[1].dies_at = "update_weights"
    engines[1].leave()
    with failing("transfer") as told:
        publishing.publish(Source(), 1)
    assert told.engines == [engines[1].url]
    assert told.seconds < LONG / 2


def test_a_silent_transfer_ends_with_its_time(
    engines: list[ReceivingEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast_sender, "ACCOUNT_SECONDS", 0.5)
    publishing = publisher(engines)
    for engine in engines:
        engine.slow["update_weights"] = LONG
    with failing("transfer") as told:
        publishing.publish(Source(), 1)
    assert told.seconds < LONG / 2
    assert set(told.engines) == {engine.url for engine in engines}


def test_the_calls_of_a_publish_share_its_time(engines: list[ReceivingEngine]) -> None:
    publishing = publisher(engines)
    for route in ("pause", "start_weight_update", "update_weights", "finish_weight_update", "resume"):
        engines[0].slow[route] = 0.4 * LIMIT  # each is well within the limit
    with failing("weight transfer failed") as told:
        publishing.publish(Source(), 1)
    assert engines[0].url in told.engines


def test_engines_that_hold_new_weights_under_the_old_version_stay_paused(engines: list[ReceivingEngine]) -> None:
    publishing = publisher(engines)
    engines[1].refuses["update_weight_version"] = 500
    with failing("answered 500"):
        publishing.publish(Source(), 1)
    assert "resume" not in engines[0].asked + engines[1].asked


def test_settling_waits_until_the_parameters_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_empg.actor.actor import Actor

    trace: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: trace.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)

    def gather(force_sync: bool) -> None:
        trace.append("gather")

    chunk = SimpleNamespace(ddp_config=SimpleNamespace(overlap_param_gather=True), start_param_sync=gather)
    actor: Any = object.__new__(Actor)
    actor.model = [chunk]
    actor.settle()
    assert trace == ["gather", "synchronize"]


def test_the_port_of_the_rendezvous_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMPG_WEIGHTS_PORT", raising=False)
    assert rendezvous_port() == 0
    port = free_port()
    monkeypatch.setenv("EMPG_WEIGHTS_PORT", str(port))
    for _ in range(2):  # also a second time, after a group that broke
        store = open_store("127.0.0.1", rendezvous_port(), 2, 5.0)
        assert store.port == port
        with socket.create_connection(("127.0.0.1", port), timeout=5.0):
            pass
        del store
    for wrong in ("0", "65536", "-1", "x", "8 "):
        monkeypatch.setenv("EMPG_WEIGHTS_PORT", wrong)
        with pytest.raises(ValueError, match=r"EMPG_WEIGHTS_PORT is .* 1 to 65535"):
            rendezvous_port()
