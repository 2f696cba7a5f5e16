"""Broadcasts over NCCL: their streams, and vLLM's communicator, of which stand-ins are here without GPUs."""

import inspect
import multiprocessing as mp
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_empg.weights.sync import broadcast, nccl_wire
from megatron_empg.weights.sync.broadcast import BroadcastGroup, in_order, open_store
from megatron_empg.weights.sync.nccl_wire import NcclWire, joined, new_unique_id
from megatron_empg.weights.sync.waiting import nobody_refused

pynccl = pytest.importorskip("vllm.distributed.device_communicators.pynccl")
pynccl_wrapper = pytest.importorskip("vllm.distributed.device_communicators.pynccl_wrapper")
nccl_common = pytest.importorskip("vllm.distributed.weight_transfer.nccl_common")

LIMIT = timedelta(seconds=5)
SHORT = timedelta(seconds=0.2)
GPU = torch.device("cuda", 0)
Trace = list[tuple[str, ...]]


class Stream:
    """Writes down what it waits for."""

    def __init__(self, name: str, trace: Trace) -> None:
        self.name, self.trace = name, trace

    def wait_stream(self, other: "Stream") -> None:
        self.trace.append((self.name, "waits for", other.name))

    def synchronize(self) -> None:
        self.trace.append((self.name, "synchronize"))


class Event:
    """Through as soon as it was asked as often as it says."""

    asked_before = 2

    def __init__(self) -> None:
        self.asked = 0

    def record(self, stream: Stream) -> None:
        stream.trace.append((stream.name, "event"))

    def query(self) -> bool:
        self.asked += 1
        return self.asked > self.asked_before


class Recorded(torch.Tensor):
    """A tensor whose allocator bookkeeping is written down."""

    def record_stream(self, stream: Any) -> None:
        stream.trace.append((stream.name, "keeps the memory"))


class Communicator:
    """vLLM's, as far as a wire uses it."""

    def __init__(self, unique_id: bytes, rank: int, world_size: int, device: torch.device) -> None:
        self.made_by = (unique_id, rank, world_size, device)
        self.disabled = self.destroyed = False

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Stream) -> None:
        stream.trace.append((stream.name, f"broadcast of {tensor.numel()} {tensor.dtype} from {src}"))

    def destroy(self) -> None:
        self.destroyed = True


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    """What happens on streams that are stand-ins, as communicators and NCCL are."""
    seen: Trace = []
    made, side = Stream("training", seen), Stream("broadcasts", seen)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: made)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(nccl_wire, "stream_of", lambda _device: side)
    monkeypatch.setattr(nccl_common, "uid_init_process_group", Communicator)
    monkeypatch.setattr(nccl_wire, "new_unique_id", lambda: b"an id")
    monkeypatch.setattr(nccl_wire, "LOOK_SECONDS", 0.0)
    zeros = torch.zeros

    def on_cpu(*size: int, device: Any = None, **given: Any) -> torch.Tensor:
        return zeros(*size, **given)

    monkeypatch.setattr(torch, "zeros", on_cpu)
    return seen


def test_a_broadcast_waits_for_what_makes_its_tensor(trace: Trace) -> None:
    wire = NcclWire(dist.HashStore(), 0, 3, GPU, LIMIT)
    assert trace == [("training", "broadcast of 1 torch.uint8 from 0"), ("training", "synchronize")], "they met"
    trace.clear()
    wire.start(torch.zeros(4, 3, dtype=torch.bfloat16)).wait(LIMIT, nobody_refused)
    assert trace == [
        ("broadcasts", "waits for", "training"),
        ("broadcasts", "broadcast of 24 torch.uint8 from 0"),
        ("broadcasts", "event"),
    ]


def test_a_tensor_is_held_until_it_is_through_and_its_memory_where_it_is_given_up(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = NcclWire(dist.HashStore(), 0, 3, GPU, LIMIT)
    begun = wire.start(torch.zeros(2))
    assert list(wire._under_way) == [begun]
    begun.wait(LIMIT, nobody_refused)
    assert not wire._under_way
    monkeypatch.setattr(Event, "asked_before", 10**9)
    wire.start(torch.zeros(2).as_subclass(Recorded))
    wire.close()
    assert trace[-1] == ("broadcasts", "keeps the memory")
    assert not wire._under_way


def test_a_rank_that_leaves_ends_the_waiting_of_the_others(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "asked_before", 10**9)
    store = dist.HashStore()
    wires = [NcclWire(store, rank, 3, GPU, LIMIT) for rank in range(3)]
    begun = [wire.start(torch.zeros(2).as_subclass(Recorded)) for wire in wires]
    wires[2].close()
    for waiting in begun[:2]:
        with pytest.raises(RuntimeError, match="rank 2 has left the weight transfer"):
            waiting.wait(LIMIT, nobody_refused)
    with pytest.raises(RuntimeError, match="this rank has left"):
        begun[2].wait(LIMIT, nobody_refused)


def test_a_broadcast_that_was_aborted_has_not_arrived(trace: Trace) -> None:
    wire = NcclWire(dist.HashStore(), 0, 2, GPU, LIMIT)
    begun = wire.start(torch.zeros(2).as_subclass(Recorded))
    wire.close()
    with pytest.raises(RuntimeError, match="this rank has left"):
        begun.wait(LIMIT, nobody_refused)


def test_ranks_find_each_other_by_what_the_first_says(trace: Trace) -> None:
    store = dist.HashStore()
    made: list[Any] = [NcclWire(store, rank, 2, GPU, LIMIT)._communicator for rank in (0, 1)]
    assert [communicator.made_by for communicator in made] == [(b"an id", 0, 2, GPU), (b"an id", 1, 2, GPU)]


def test_a_broadcast_that_is_not_through_in_its_time_is_an_error(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Event, "asked_before", 10**9)
    wire = NcclWire(dist.HashStore(), 0, 2, GPU, LIMIT)
    begun = wire.start(torch.zeros(2).as_subclass(Recorded))
    with pytest.raises(RuntimeError, match="a weight transfer stood still for 0 s"):
        begun.wait(SHORT, nobody_refused)
    communicator: Any = wire._communicator
    wire.close()
    assert communicator.destroyed


def test_a_peer_that_refuses_ends_the_waiting(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would wait for it for ever."""
    monkeypatch.setattr(Event, "asked_before", 10**9)
    begun = NcclWire(dist.HashStore(), 0, 2, GPU, LIMIT).start(torch.zeros(2).as_subclass(Recorded))
    asked: list[int] = []

    def refused() -> None:
        asked.append(len(asked))
        if len(asked) > 3:
            raise ValueError("an engine has answered 500")

    with pytest.raises(ValueError, match="answered 500"):
        begun.wait(LIMIT, refused)


def test_ranks_that_do_not_come_are_an_error(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(nccl_wire, "joined", lambda *_: over.wait(LIMIT.total_seconds()))
    with pytest.raises(RuntimeError, match="stood still for 0 s"):
        NcclWire(dist.HashStore(), 0, 2, GPU, SHORT)
    over.set()


def test_a_communicator_that_comes_too_late_is_destroyed(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    late, made = threading.Event(), Communicator(b"an id", 0, 2, GPU)

    def come(*_: Any) -> Communicator:
        late.wait(LIMIT.total_seconds())
        return made

    monkeypatch.setattr(nccl_wire, "joined", come)
    with pytest.raises(RuntimeError, match="stood still"):
        NcclWire(dist.HashStore(), 0, 2, GPU, SHORT)
    late.set()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "weights-nccl"]
    thread.join()
    assert made.destroyed


def test_an_engine_that_refuses_ends_the_meeting(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(nccl_wire, "joined", lambda *_: over.wait(LIMIT.total_seconds()))

    def refused() -> None:
        over.set()
        raise ValueError("an engine has answered 500")

    with pytest.raises(ValueError, match="answered 500"):
        NcclWire(dist.HashStore(), 0, 2, GPU, LIMIT, refused)


def test_a_communicator_that_would_send_nothing_is_an_error(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_common, "uid_init_process_group", lambda *_: SimpleNamespace(disabled=True))
    with pytest.raises(RuntimeError, match="VLLM_DISABLE_PYNCCL"):
        joined(b"an id", 0, 2, GPU)


def test_a_group_is_over_nccl_where_its_tensors_are_on_a_gpu(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Wire(NcclWire):
        def __init__(self, store: Any, *place: Any) -> None:
            made.append(place)
            super().__init__(store, *place)

    monkeypatch.setattr(broadcast, "NcclWire", Wire)
    store = open_store("127.0.0.1", 0, 2, 5.0)
    group = BroadcastGroup("127.0.0.1", store, 0, 2, 5.0, device=GPU)
    group.broadcast(torch.zeros(2).as_subclass(Recorded))
    assert made == [(0, 2, GPU, LIMIT, nobody_refused)]
    group.close()
    with pytest.raises(RuntimeError, match="closed"):
        group.broadcast(torch.zeros(2))


# vLLM's own


def test_vllm_makes_a_communicator_of_an_id_and_a_place() -> None:
    given = list(inspect.signature(nccl_common.uid_init_process_group).parameters)
    assert given == ["nccl_unique_id_bytes", "rank", "world_size", "device"]
    given = list(inspect.signature(pynccl.PyNcclCommunicator.broadcast).parameters)
    assert given == ["self", "tensor", "src", "stream"]
    assert "disabled" in inspect.getsource(pynccl.PyNcclCommunicator.from_unique_id_bytes)
    assert pynccl_wrapper.ncclDataTypeEnum.from_torch(torch.uint8) == pynccl_wrapper.ncclDataTypeEnum.ncclUint8
    assert inspect.signature(pynccl.PyNcclCommunicator.destroy).parameters.keys() == {"self"}


def test_an_id_is_the_bytes_that_vllm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pynccl_wrapper.ncclUniqueId()
    made.internal[0], made.internal[127] = 7, -3
    assert hasattr(pynccl_wrapper.NCCLLibrary, "ncclGetUniqueId")
    back = pynccl_wrapper.NCCLLibrary.unique_id_from_bytes
    library = SimpleNamespace(ncclGetUniqueId=lambda: made)
    monkeypatch.setattr(pynccl_wrapper, "NCCLLibrary", lambda: library)
    unique_id = new_unique_id()
    assert len(unique_id) == pynccl_wrapper.NCCL_UNIQUE_ID_BYTES
    assert list(back(object(), unique_id).internal) == list(made.internal)


def test_a_machine_without_nccl_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("NCCL is there")
    with pytest.raises(RuntimeError, match="NCCL cannot be loaded"):
        new_unique_id()


# On two GPUs


def values(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.arange(3_000_000, device=device).to(dtype).view(3, -1)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
MINUTE = 60.0


def receive(ports: list[int], folder: str) -> None:
    """The worker of two senders, in a process of its own; it takes their tensors by turns, and then leaves."""
    device = torch.device("cuda", 1)
    torch.cuda.set_device(device)
    groups = [
        BroadcastGroup.join("127.0.0.1", port, 1, 2, MINUTE, device=device, serves=torch.bfloat16)
        for port in ports
    ]
    rooms = [torch.empty_like(values(dtype, device)) for dtype in DTYPES for _ in groups]
    by_turns = (groups[number % 2].start(room) for number, room in enumerate(rooms))
    same = [torch.equal(room, values(room.dtype, device)) for room in in_order(by_turns)]
    Path(folder, "same").write_text(f"{len(same)} {all(same)}", encoding="ascii")
    for group in groups:
        group.close()


@pytest.mark.gpu
def test_a_worker_receives_from_two_senders_and_each_hears_that_it_left(tmp_path: Path) -> None:
    """One GPU has both senders, which NCCL allows: they are in different communicators."""
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants a GPU for each rank")
    device = torch.device("cuda", 0)
    stores = [open_store("127.0.0.1", 0, 2, MINUTE) for _ in range(2)]
    other = mp.get_context("spawn").Process(target=receive, args=([store.port for store in stores], str(tmp_path)))
    other.start()
    groups = [BroadcastGroup("127.0.0.1", store, 0, 2, MINUTE, device=device) for store in stores]
    by_turns = [group.start(values(dtype, device)) for dtype in DTYPES for group in groups]
    for begun in by_turns:
        begun.wait()
    other.join(MINUTE)
    assert (tmp_path / "same").read_text(encoding="ascii") == "8 True"
    for group in groups:
        with pytest.raises(RuntimeError, match="rank 1 has left"):
            group.broadcast(values(torch.float32, device))
        group.close()
