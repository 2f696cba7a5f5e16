"""A transfer ends with the engine that fails, or when its time is up; vLLM's own sender reads in stream order.

Engines are HTTP servers here, and NCCL is not there: what blocks in it stands for it.
"""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_empg.launch.ports import free_port
from megatron_empg.weights.sync.broadcast import open_store, rendezvous_port
from megatron_empg.weights.sync.engine_control import EngineControl, WeightTransferError
from megatron_empg.weights.sync.nccl_sender import NcclSender, NcclTransport, in_stream_order
from megatron_empg.weights.sync.together import SingleProcess
from megatron_empg.weights.sync.transfer import WeightPublisher
from tests.support.weight_engines import Engine, Source

LIMIT = 3.0
LONG = 60.0
"""Seconds that an engine waits when nobody wakes it. A test that takes half of them has waited for it."""


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made = [Engine(), Engine()]
    yield made
    for engine in made:
        engine.stop()


class Native:
    """vLLM's trainer engine over a communicator: blocks in `broadcast` until it is aborted."""

    def __init__(self, client: EngineControl, source: Any, *, blocks: bool) -> None:
        self.client, self.source, self.blocks = client, source, blocks
        self.aborted, self.thread = threading.Event(), ""

    def send_weights(self) -> None:
        self.thread = threading.current_thread().name
        self.client.start_weight_update()
        reply = ThreadPoolExecutor(1).submit(self.client.update_weights, {})
        for _ in self.source._stream:
            if self.blocks:
                self.aborted.wait()
        reply.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.aborted.set()


def sender(control: EngineControl, *, blocks: bool = True) -> NcclSender:
    made: Any = object.__new__(NcclSender)
    made._engines, made._device, made._stream = control, torch.device("cpu"), None
    made._native = Native(control, made, blocks=blocks)
    return made


def publisher(
    engines: list[Engine], *, blocks: bool = True, limit: float = LIMIT
) -> tuple[WeightPublisher, Native]:
    made = WeightPublisher([engine.url for engine in engines], "t", device="cpu", timeout=limit)
    assert made._engines
    made._transport = NcclTransport(made._engines, "127.0.0.1", torch.device("cpu"), SingleProcess())
    made._transport._sender = sender(made._engines, blocks=blocks)
    made._connected = True
    return made, made._transport._sender._native


@contextmanager
def failing(match: str) -> Iterator[SimpleNamespace]:
    """WeightTransferError within the block; `seconds` it took."""
    told, started = SimpleNamespace(), time.monotonic()
    with pytest.raises(WeightTransferError, match=match) as caught:
        yield told
    told.seconds, told.engines = time.monotonic() - started, caught.value.engines


def test_an_engine_that_refuses_ends_a_transfer_that_blocks(engines: list[Engine]) -> None:
    engines[1].refuses["update_weights"] = 500
    engines[0].slow["update_weights"] = LONG  # waits in NCCL for the trainer
    publishing, native = publisher(engines, limit=2 * LONG)
    source = Source()
    with failing("answered 500") as told:
        publishing.publish(source, 1)
    assert told.engines == [engines[1].url]
    assert told.seconds < LONG / 2
    assert native.aborted.is_set()
    assert source.readers == ["weights-nccl"] * 4  # whole, as the other ranks read theirs, and by one thread
    assert "resume" not in engines[0].asked  # it may hold half of the weights


def test_an_engine_that_died_ends_a_transfer_that_blocks(engines: list[Engine]) -> None:
    publishing, native = publisher(engines, limit=2 * LONG)
    engines[0].slow["update_weights"] = LONG
    engines[1].dies_at = "update_weights"
    with failing("transfer") as told:
        publishing.publish(Source(), 1)
    assert told.engines == [engines[1].url]
    assert told.seconds < LONG / 2
    assert native.aborted.is_set()


def test_a_silent_transfer_ends_with_its_time_and_is_aborted(engines: list[Engine]) -> None:
    for engine in engines:
        engine.slow["update_weights"] = LONG
    publishing, native = publisher(engines)
    with failing("transfer") as told:
        publishing.publish(Source(), 1)
    assert told.seconds < LONG / 2
    assert set(told.engines) == {engine.url for engine in engines}
    assert native.aborted.is_set()


def test_the_calls_of_a_publish_share_its_time(engines: list[Engine]) -> None:
    for route in ("pause", "start_weight_update", "update_weights", "finish_weight_update", "resume"):
        engines[0].slow[route] = 0.4 * LIMIT  # each is well within the limit
    publishing, _ = publisher(engines, blocks=False)
    with failing("weight transfer failed") as told:
        publishing.publish(Source(), 1)
    assert told.engines == [engines[0].url]


def test_engines_that_hold_new_weights_under_the_old_version_stay_paused(engines: list[Engine]) -> None:
    engines[1].refuses["update_weight_version"] = 500
    publishing, _ = publisher(engines, blocks=False)
    with failing("answered 500"):
        publishing.publish(Source(), 1)
    assert "resume" not in engines[0].asked + engines[1].asked


def test_a_transfer_that_works_is_not_touched_and_runs_in_its_own_thread(engines: list[Engine]) -> None:
    publishing, native = publisher(engines, blocks=False)
    report = publishing.publish(Source(), 5)
    assert (report.tensors, report.bytes) == (4, 32)
    assert native.thread != threading.current_thread().name  # whose CUDA stream vLLM would change for good
    assert not native.aborted.is_set()
    assert engines[0].asked[-1] == "resume"


def test_joining_ends_with_an_engine_that_refuses(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    factory = pytest.importorskip("vllm.distributed.weight_transfer.factory").WeightTransferTrainerFactory
    never = threading.Event()

    def trainer_init(info: Any, *, client: EngineControl, source: Any) -> None:
        calls = ThreadPoolExecutor(1)
        calls.submit(client.init_weight_transfer_engine, {"rank_offset": 1})
        never.wait(LONG)  # ncclCommInitRank, which no engine joins

    monkeypatch.setattr(factory, "trainer_init", staticmethod(trainer_init))
    engines[1].refuses["init_weight_transfer_engine"] = 500
    control = EngineControl([engine.url for engine in engines], "t", 2 * LONG)
    with failing("connect") as told, control.within(2 * LONG):
        control.read_world_sizes()
        NcclSender(control, "127.0.0.1", torch.device("cpu"))
    assert told.engines == [engines[1].url]
    assert told.seconds < LONG / 2
    never.set()


# Streams


class Stream:
    """Writes down what it waits for; everything on it has a number in its own order."""

    def __init__(self, name: str, trace: list[tuple[str, ...]]) -> None:
        self.name, self.trace = name, trace

    def wait_stream(self, other: "Stream") -> None:
        self.trace.append(("wait", self.name, other.name))

    def synchronize(self) -> None:
        self.trace.append(("synchronize", self.name))


class Recorded(torch.Tensor):
    """A tensor whose allocator bookkeeping is written down."""

    def record_stream(self, stream: Any) -> None:
        stream.trace.append(("record", stream.name, id(self)))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Stream], list[tuple[str, ...]]]:
    trace: list[tuple[str, ...]] = []
    made = [Stream(name, trace) for name in ("main", "packing 0", "packing 1")]
    current = [made[0]]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    return made, trace


@pytest.mark.filterwarnings("ignore:Tensor .* exceeds buffer_size_bytes")
def test_each_tensor_is_read_after_it_was_made_on_whichever_stream(
    streams: tuple[list[Stream], list[tuple[str, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own producer with one byte a chunk: each tensor of a row is consumed on the other stream."""
    packing = pytest.importorskip("vllm.distributed.weight_transfer.packed_tensor")
    (_, *side), trace = streams
    monkeypatch.setattr(packing, "_get_streams", lambda *_: side)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)

    def rows() -> Iterator[tuple[str, torch.Tensor]]:
        for row in range(3):
            made = [torch.ones(2).as_subclass(Recorded) for _ in range(3)]
            trace.append(("make", torch.cuda.current_stream().name, str(row)))
            for part, tensor in enumerate(made):
                yield f"row {row} part {part}", tensor

    def pairs() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in in_stream_order(rows()):
            trace.append(("read", torch.cuda.current_stream().name, name.split()[1]))
            yield name, tensor

    group = SimpleNamespace(broadcast=lambda tensor, src: None)
    packing.packed_nccl_broadcast_producer(pairs(), group, 0, lambda item: item[1], 1, 2)

    seen: dict[str, set[str]] = {stream.name: set() for stream in side}  # rows whose making each stream is behind
    crossed = 0
    for kind, stream, *what in trace:
        if kind == "make":
            seen[stream].add(what[0])
            maker = stream
        elif kind == "wait":
            seen[stream] |= seen[what[0]]
        elif kind == "read":
            assert what[0] in seen[stream], f"row {what[0]} is read on {stream} before it was made"
            crossed += stream != maker
    assert crossed >= 3
    reads, records = ([event for event in trace if event[0] == kind] for kind in ("read", "record"))
    assert [event[1] for event in records] == [event[1] for event in reads]  # memory outlives its reader


def test_settling_waits_until_the_parameters_are_there(
    streams: tuple[list[Stream], list[tuple[str, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_empg.actor.actor import Actor

    _, trace = streams
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def gather(force_sync: bool) -> None:
        trace.append(("gather", torch.cuda.current_stream().name))

    chunk = SimpleNamespace(ddp_config=SimpleNamespace(overlap_param_gather=True), start_param_sync=gather)
    actor: Any = object.__new__(Actor)
    actor.model = [chunk]
    actor.settle()
    assert trace == [("gather", "main"), ("synchronize", "main")]


# The rendezvous


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


def test_a_second_communicator_replaces_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = pytest.importorskip("megatron_empg.weights.sync.vllm_extension")
    native = extension.NCCLWeightTransferEngine
    destroyed: list[str] = []

    def make(self: Any, info: str) -> None:
        self.model_update_group = SimpleNamespace(destroy=lambda: destroyed.append(info))

    monkeypatch.setattr(native, "init_transfer_engine", make)
    engine = object.__new__(extension.CheckedNcclEngine)
    engine.model_update_group = None
    for name in ("first", "second"):
        engine.init_transfer_engine(name)
    assert destroyed == ["first"]
