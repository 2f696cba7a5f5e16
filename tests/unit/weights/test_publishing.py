"""A publication is tried again, whole, with the engines that answer; gloo is real here, and engines stand-ins."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from megatron_empg.weights.sync.broadcast import PORT_VARIABLE
from megatron_empg.weights.sync.checksums import CHECKSUMS
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.gloo_sender import announced
from megatron_empg.weights.sync.gloo_transport import address_towards
from megatron_empg.weights.sync.source import Sent
from megatron_empg.weights.sync.transfer import PublishReport, WeightPublisher
from tests.thread_ranks import ThreadRanks, on_ranks
from tests.weight_engines import ReceivingEngine, Source

LIMIT = 60.0
NAMES = ["w0", "w1", "w2", "w3"]


@pytest.fixture
def engines() -> Iterator[list[ReceivingEngine]]:
    made = [ReceivingEngine(), ReceivingEngine()]
    yield made
    for engine in made:
        engine.stop()


@pytest.fixture
def publisher(engines: list[ReceivingEngine]) -> Iterator[WeightPublisher]:
    made = WeightPublisher([engine.url for engine in engines], "t", device="cpu", timeout=LIMIT)
    yield made
    made.close()


def assert_holds(engine: ReceivingEngine, version: int) -> None:
    for name, tensor in Source():
        assert torch.equal(engine.weights[name], tensor), name
    assert engine.version == str(version)
    assert not engine.paused


def flipping(sessions: int) -> Callable[[int, torch.Tensor], None]:
    """Flips a bit of the third tensor in so many sessions."""
    left = [sessions]

    def flip(number: int, tensor: torch.Tensor) -> None:
        if number == 2 and left[0]:
            left[0] -= 1
            tensor.view(torch.uint8)[3] ^= 1

    return flip


def test_weights_that_arrive_are_reported(engines: list[ReceivingEngine], publisher: WeightPublisher) -> None:
    for version in (1, 2):
        report = publisher.publish(Source(), version)
        assert (report.tensors, report.bytes, report.attempts, report.left_out) == (4, 32, 1, ())
        for engine in engines:
            assert_holds(engine, version)
            assert engine.arrived == NAMES
    assert engines[0].asked.count("init_weight_transfer_engine") == 1  # the group stays


def test_a_flipped_bit_is_sent_again_whole(engines: list[ReceivingEngine], publisher: WeightPublisher) -> None:
    engines[1].on_arrival = flipping(sessions=2)
    report = publisher.publish(Source(), 5)
    assert report.attempts == 3
    for engine in engines:
        assert_holds(engine, 5)
        assert engine.asked.count("pause") == 3
        assert engine.asked.count("resume") == 1  # it stays paused in between
        assert engine.asked.count("update_weight_version") == 1


def test_a_bit_that_is_always_flipped_ends_it_by_tensor_engine_and_sums(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    engines[1].on_arrival = flipping(sessions=100)
    says = rf"'transfer' on 1 engine\(s\): {engines[1].url}: .*w2 \(sent [0-9a-f]{{16}}, arrived [0-9a-f]{{16}}\)"
    with pytest.raises(WeightTransferError, match=says) as caught:
        publisher.publish(Source(), 5)
    assert caught.value.engines == [engines[1].url]
    assert engines[1].asked.count("update_weights") >= 3
    assert engines[1].paused
    assert engines[1].version == "0"
    engines[1].on_arrival = flipping(sessions=0)
    publisher.publish(Source(), 5)
    assert_holds(engines[1], 5)


def test_an_engine_that_died_is_left_out_until_it_is_back(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    publisher.publish(Source(), 1)
    engines[1].dies_at = "update_weights"
    engines[1].refuses["health"] = 503
    report = publisher.publish(Source(), 2)
    assert report.left_out == (engines[1].url,)
    assert report.attempts == 2
    assert_holds(engines[0], 2)
    assert engines[1].version == "1"
    assert publisher.publish(Source(), 3).left_out == (engines[1].url,)
    engines[1].dies_at, engines[1].refuses = "", {}
    engines[1]._active = False
    assert publisher.publish(Source(), 4).left_out == ()
    for engine in engines:
        assert_holds(engine, 4)


def test_an_engine_that_falls_silent_is_left_out_within_the_time(engines: list[ReceivingEngine]) -> None:
    """In a call of its own, and while it receives."""

    def never(_number: int, _tensor: torch.Tensor) -> None:
        engines[1].over.wait(LIMIT)

    for silence in ("start_weight_update", "receives"):
        engines[1].slow = {silence: LIMIT}
        engines[1].on_arrival = never
        engines[1].refuses = {"health": 503}
        publisher = WeightPublisher([engine.url for engine in engines], "t", device="cpu", timeout=24.0)
        started = time.monotonic()
        try:
            report = publisher.publish(Source(), 1)
        finally:
            publisher.close()
        assert time.monotonic() - started < 24.0
        assert (report.attempts, report.left_out) == (2, (engines[1].url,))
        assert_holds(engines[0], 1)
        engines[1].stop()
        engines[1] = ReceivingEngine()


def test_without_an_engine_that_answers_it_ends(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    for engine in engines:
        engine.refuses = {"get_world_size": 500, "health": 500}
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match="'world size' on 2 engine") as caught:
        publisher.publish(Source(), 1)
    assert time.monotonic() - started < LIMIT / 2
    assert sorted(caught.value.engines) == sorted(engine.url for engine in engines)


def test_what_a_source_raises_is_not_tried_again(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    class Broken(Source):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in super().__iter__():
                if name == "w2":
                    raise KeyError("no such shard")
                yield name, tensor

    with pytest.raises(KeyError, match="no such shard"):
        publisher.publish(Broken(), 1)
    assert engines[0].asked.count("start_weight_update") == 1
    publisher.publish(Source(), 1)
    assert_holds(engines[0], 1)


@pytest.mark.parametrize(
    ("served", "sent", "size"),
    [(torch.bfloat16, torch.bfloat16, 16), (torch.float32, torch.float32, 32)],
)
def test_no_more_bytes_travel_than_engines_keep(served: torch.dtype, sent: torch.dtype, size: int) -> None:
    engine = ReceivingEngine(served)
    publisher = WeightPublisher([engine.url], "t", device="cpu", timeout=LIMIT)
    values = torch.tensor([1 / 3, 1 + 2**-10])

    class Exact(Source):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            yield from ((name, values) for name in NAMES)

    try:
        assert publisher.publish(Exact(), 1).bytes == size
        assert engine.weights["w0"].dtype == sent
        assert torch.equal(engine.weights["w0"], values.to(sent))
    finally:
        publisher.close()
        engine.stop()


def test_engines_of_two_dtypes_get_all_bits() -> None:
    both = [ReceivingEngine(torch.bfloat16), ReceivingEngine(torch.float32)]
    publisher = WeightPublisher([engine.url for engine in both], "t", device="cpu", timeout=LIMIT)
    try:
        assert publisher.publish(Source(), 1).bytes == 32
    finally:
        publisher.close()
        for engine in both:
            engine.stop()


def test_a_port_that_is_not_free_yet_is_a_failure_that_may_pass(
    engines: list[ReceivingEngine], publisher: WeightPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv(PORT_VARIABLE, str(port))
        with pytest.raises(WeightTransferError, match=f"trainer at 127.0.0.1:{port}.*in use") as raised:
            publisher.connect(Source())
        assert raised.value.passing
    assert publisher.publish(Source(), 1).attempts == 1


# Several ranks


class Followed(Source):
    """A source that a second rank helps to make; `taken` counts its passes."""

    def __init__(self) -> None:
        self.taken = 0

    def take_part(self) -> None:
        self.taken += 1


def test_ranks_try_again_together_and_fail_together(engines: list[ReceivingEngine]) -> None:
    urls = [engine.url for engine in engines]
    sources = [Followed(), Followed()]

    def publish(ranks: ThreadRanks) -> PublishReport:
        publisher = WeightPublisher(urls, "t", device="cpu", timeout=LIMIT, ranks=ranks)
        try:
            return publisher.publish(sources[ranks.rank], 1)
        finally:
            publisher.close()

    engines[1].on_arrival = flipping(sessions=1)
    reports = on_ranks(publish, 2)
    assert [report.attempts for report in reports] == [2, 2]
    assert sources[1].taken == 2
    engines[1].on_arrival = flipping(sessions=100)
    errors = on_ranks(publish, 2)
    assert all(isinstance(error, WeightTransferError) for error in errors)
    assert "w2 (sent" in str(errors[0])
    assert str(errors[1]).startswith("weight transfer failed in 'transfer' on 1 engine(s): trainer rank 0: ")
    assert "w2 (sent" in str(errors[1])


# The order in which several senders are received from


def of(sender: int, name: str, rows: int) -> Sent:
    return Sent(sender, name, torch.bfloat16, (rows, 2))


def test_stages_are_taken_side_by_side_and_each_in_its_own_order() -> None:
    first = [of(0, "a0", 40), of(0, "a1", 10), of(1, "a2", 10), of(0, "a3", 30)]
    second = [of(2, "b0", 10), of(3, "b1", 35), of(2, "b2", 10)]
    update = announced([first, second])
    assert update.names[:-4] == ["a0", "b0", "b1", "a1", "b2", "a2", "a3"]
    assert update.senders == [0, 2, 3, 0, 2, 1, 0, 0, 1, 2, 3]
    assert update.names[-4:] == [CHECKSUMS] * 4
    assert update.shapes[-4:] == [[3], [1], [2], [1]]
    assert update.dtype_names == ["bfloat16"] * 7 + ["int64"] * 4


def test_a_rank_waits_at_the_interface_that_reaches_the_engines() -> None:
    assert address_towards("http://127.0.0.1:8000") == "127.0.0.1"
    assert address_towards("http://[::1]:8000") == "::1"
