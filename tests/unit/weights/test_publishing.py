"""A publication is whole, or engines stay paused; gloo is real here, and engines stand-ins."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from megatron_empg.weights.sync import broadcast_sender, engine_control
from megatron_empg.weights.sync.broadcast import PORT_VARIABLE
from megatron_empg.weights.sync.broadcast_sender import announced
from megatron_empg.weights.sync.broadcast_transport import address_towards
from megatron_empg.weights.sync.checksums import CHECKSUMS
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.source import AssignedTensor
from megatron_empg.weights.sync.transfer import PublishReport, WeightPublisher
from tests.support.thread_ranks import ThreadRanks, on_ranks
from tests.support.weight_engines import ReceivingEngine, Source

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


def flipping() -> Callable[[int, torch.Tensor], None]:
    """Flips a bit of the third tensor."""

    def flip(number: int, tensor: torch.Tensor) -> None:
        if number == 2:
            tensor.view(torch.uint8)[3] ^= 1

    return flip


def test_weights_that_arrive_are_reported(engines: list[ReceivingEngine], publisher: WeightPublisher) -> None:
    for version in (1, 2):
        report = publisher.publish(Source(), version)
        assert (report.tensors, report.bytes) == (4, 32)
        for engine in engines:
            assert_holds(engine, version)
            assert engine.arrived == NAMES
    assert engines[0].asked.count("init_weight_transfer_engine") == 1  # the group stays


def test_a_flipped_bit_ends_it_by_tensor_engine_and_sums(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    engines[1].on_arrival = flipping()
    says = rf"'transfer' on 1 engine\(s\): {engines[1].url}: .*w2 \(sent [0-9a-f]{{16}}, arrived [0-9a-f]{{16}}\)"
    with pytest.raises(WeightTransferError, match=says) as caught:
        publisher.publish(Source(), 5)
    assert caught.value.engines == [engines[1].url]
    assert [engine.asked.count("update_weights") for engine in engines] == [2, 2], "all of it, and to close it"
    for engine in engines:
        assert (engine.paused, engine.version) == (True, "0")
    engines[1].on_arrival = lambda _number, _tensor: None
    publisher.publish(Source(), 5)
    for engine in engines:
        assert_holds(engine, 5)


def test_engines_that_were_paused_stay_so_where_another_refuses_to_be(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    """They may hold half of the weights of a try before, of which this publisher knows nothing."""
    engines[1].refuses["pause"] = 500
    with pytest.raises(WeightTransferError, match="'pause' on 1 engine"):
        publisher.publish(Source(), 1)
    assert engines[0].paused
    assert "resume" not in engines[0].asked


@pytest.mark.parametrize("fault", ["refuses", "dies"])
def test_joining_ends_at_once_with_an_engine_that_will_not_come(
    engines: list[ReceivingEngine], publisher: WeightPublisher, fault: str
) -> None:
    route = "init_weight_transfer_engine"
    if fault == "refuses":
        engines[1].refuses[route] = 500
    else:
        engines[1].dies_at = route
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match="'connect' on 1 engine") as caught:
        publisher.connect(Source())
    assert time.monotonic() - started < LIMIT / 4
    assert caught.value.engines == [engines[1].url]
    engines[1].refuses, engines[1].dies_at = {}, ""
    publisher.publish(Source(), 1)  # the other one waits for nobody any more
    for engine in engines:
        assert_holds(engine, 1)


def test_an_engine_that_gives_no_account_of_a_broadcast_is_named(
    engines: list[ReceivingEngine], publisher: WeightPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, which waited for it in vain, say so at once."""
    monkeypatch.setattr(broadcast_sender, "ACCOUNT_SECONDS", 0.5)
    monkeypatch.setattr(engine_control, "CLEAN_UP", 0.1)
    engines[1].on_arrival = lambda _number, _tensor: engines[1].over.wait(LIMIT)
    rows = 8 << 20  # more than a connection holds under way

    class Large(Source):
        def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
            return [(name, torch.float32, (rows,)) for name in NAMES]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            yield from ((name, torch.zeros(rows)) for name in NAMES)

    with pytest.raises(WeightTransferError, match="has not answered; ") as caught:
        publisher.publish(Large(), 1, seconds=8.0)
    assert caught.value.engines == [engines[1].url]


def test_a_call_ends_in_the_seconds_it_is_given(
    engines: list[ReceivingEngine], publisher: WeightPublisher
) -> None:
    publisher.connect(Source())
    engines[1].slow["start_weight_update"] = LIMIT
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match="'start' on 1 engine"):
        publisher.publish(Source(), 1, seconds=1.0)
    assert time.monotonic() - started < LIMIT / 4


def test_a_run_that_a_transfer_ended_goes_on_where_it_may_go_well_another_time() -> None:
    engine = {"http://a": "it is gone"}
    assert WeightTransferError("transfer", engine).accident
    assert not WeightTransferError("transfer", engine, passing=False).accident


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


def test_what_a_source_raises_is_raised_and_the_next_source_is_sent(
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
    assert publisher.publish(Source(), 1).tensors == 4


# Several ranks


class Followed(Source):
    """A source that a second rank helps to make; `taken` counts its passes."""

    def __init__(self) -> None:
        self.taken = 0

    def take_part(self) -> None:
        self.taken += 1


def test_ranks_fail_together_and_each_ends_its_source(engines: list[ReceivingEngine]) -> None:
    urls = [engine.url for engine in engines]
    sources = [Followed(), Followed()]

    def publish(ranks: ThreadRanks) -> PublishReport:
        publisher = WeightPublisher(urls, "t", device="cpu", timeout=LIMIT, ranks=ranks)
        try:
            return publisher.publish(sources[ranks.rank], 1)
        finally:
            publisher.close()

    reports = on_ranks(publish, 2)
    assert [report.tensors for report in reports] == [4, 4]
    assert sources[1].taken == 1
    engines[1].on_arrival = flipping()
    errors = on_ranks(publish, 2)
    assert sources[1].taken == 2
    assert all(isinstance(error, WeightTransferError) and error.passing for error in errors)
    assert "w2 (sent" in str(errors[0])
    assert str(errors[1]).startswith("weight transfer failed in 'transfer' on 1 engine(s): trainer rank 0: ")
    assert "w2 (sent" in str(errors[1])


# The order in which several senders are received from


def of(sender: int, name: str, rows: int) -> AssignedTensor:
    return AssignedTensor(sender, name, torch.bfloat16, (rows, 2))


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
