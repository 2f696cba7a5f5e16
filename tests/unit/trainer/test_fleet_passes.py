"""Passes to stand-in engines over real gloo: no engine goes on with other weights than it says."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from megatron_empg.trainer.fleet_publisher import EngineSenses, FleetPublisher
from megatron_empg.weights.sync import engine_control
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.transfer import WeightPublisher
from tests.support.weight_engines import ReceivingEngine, Source

LIMIT = 60.0


class Next(Source):
    """The weights of the next version."""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in super().__iter__():
            yield name, tensor + 100


class Stand:
    """Two engines that hold version 1, and their publisher. `gone`: those that do not say what they hold."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.engines = [ReceivingEngine(), ReceivingEngine()]
        self.gone: set[str] = set()
        self.told: list[tuple[str, ...]] = []
        self.after_a_fault: Callable[[], None] = lambda: None
        self.publisher = FleetPublisher(
            [engine.url for engine in self.engines],
            self._group,
            lambda urls, version: self.told.append(tuple(urls)),
            EngineSenses(self._held, sleep=lambda seconds: None),
            patience=LIMIT,
            limit=limit,
        )
        self.publish(Source(), 1)

    def _group(self, urls: Sequence[str]) -> WeightPublisher:
        stand = self

        class Watched(WeightPublisher):
            def publish(self, *given: object, **named: object) -> object:  # type: ignore[override]
                try:
                    return super().publish(*given, **named)  # type: ignore[arg-type]
                except WeightTransferError:
                    stand.after_a_fault()
                    raise

        return Watched(urls, "t", device="cpu", timeout=LIMIT)

    def _held(self, url: str) -> str | None:
        if url in self.gone:
            return None
        return next(engine.version for engine in self.engines if engine.url == url)

    def publish(self, source: Source, version: int) -> None:
        self.publisher.publish(source, version)  # type: ignore[arg-type]

    def close(self) -> None:
        self.publisher.close()
        for engine in self.engines:
            engine.stop()


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def assert_holds(engine: ReceivingEngine, version: int) -> None:
    for name, tensor in Next():
        assert torch.equal(engine.weights[name], tensor), name
    assert engine.version == str(version)
    assert not engine.paused


def flipping(sessions: int) -> Callable[[int, torch.Tensor], None]:
    """Flips a bit of the last tensor in so many sessions."""
    left = [sessions]

    def flip(number: int, tensor: torch.Tensor) -> None:
        if number == 3 and left[0]:
            left[0] -= 1
            tensor.view(torch.uint8)[3] ^= 1

    return flip


def test_a_flipped_bit_is_sent_again_whole(stand: Stand) -> None:
    stand.engines[1].on_arrival = flipping(sessions=1)
    stand.publish(Next(), 2)
    for engine in stand.engines:
        assert_holds(engine, 2)
        assert engine.asked.count("pause") == 3, "of version 1, and of two passes of version 2"
        assert engine.asked.count("resume") == 2, "it stays paused in between"


def test_an_engine_whose_bits_always_flip_stays_paused_and_the_other_one_goes_on(stand: Stand) -> None:
    stand.engines[1].on_arrival = flipping(sessions=100)
    stand.publish(Next(), 2)
    assert_holds(stand.engines[0], 2)
    assert (stand.engines[1].paused, stand.engines[1].version) == (True, "1")
    assert stand.told[-1] == (stand.engines[0].url,)


def test_an_engine_that_died_is_left_out_until_it_is_back(stand: Stand) -> None:
    lost = stand.engines[1]
    lost.dies_at = "start_weight_update"
    stand.after_a_fault = lambda: stand.gone.add(lost.url)
    stand.publish(Next(), 2)
    assert_holds(stand.engines[0], 2)
    assert lost.version == "1"
    stand.gone.clear()
    lost.dies_at = ""
    stand.publish(Next(), 3)
    for engine in stand.engines:
        assert_holds(engine, 3)


def test_an_engine_that_refuses_the_second_pass_wakes_nobody_with_half_of_the_weights(stand: Stand) -> None:
    """In the first one the other engine took new tensors under the old version."""
    first, second = stand.engines
    second.on_arrival = flipping(sessions=1)
    seen: list[tuple[bool, str, float]] = []

    def look() -> None:
        seen.append((first.paused, first.version, first.weights["w0"][0].item()))
        second.refuses["pause"] = 500

    stand.after_a_fault = look
    stand.publish(Next(), 2)
    assert seen == [(True, "1", 100.0)] * 2
    assert_holds(first, 2)
    assert stand.told[-1] == (first.url,)


def test_a_frozen_engine_keeps_the_other_one_paused_for_no_longer_than_a_synchronisation_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_control, "CLEAN_UP", 0.5)
    limit = 12.0
    stand = Stand(limit)
    sound, frozen = stand.engines
    frozen.on_arrival = lambda _number, _tensor: frozen.over.wait(LIMIT)
    paused = Paused(sound)
    stand.publish(Next(), 2)
    assert_holds(sound, 2)
    assert 0.0 < paused.seconds() < limit
    stand.close()


class Paused:
    """For how long an engine is paused next, looked at from a thread."""

    def __init__(self, engine: ReceivingEngine) -> None:
        self._engine, self._seconds = engine, 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        self._until(paused=True)
        began = time.monotonic()
        self._until(paused=False)
        self._seconds = time.monotonic() - began

    def _until(self, *, paused: bool) -> None:
        deadline = time.monotonic() + LIMIT
        while self._engine.paused is not paused and time.monotonic() < deadline:
            time.sleep(0.01)

    def seconds(self) -> float:
        self._thread.join(LIMIT)
        return self._seconds
