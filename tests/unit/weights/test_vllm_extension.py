"""What an engine's worker receives is held against what was sent, over gloo and by vLLM's own NCCL engine.

The groups are stand-ins that carry, and here and there change, what would go over the wire.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_empg.weights.sync.checksums import CHECKSUMS, ChecksumError
from megatron_empg.weights.sync.gloo_sender import announced
from megatron_empg.weights.sync.receiver import Receiver
from megatron_empg.weights.sync.source import CheckedStream, WholeSource

extension = pytest.importorskip("megatron_empg.weights.sync.vllm_extension")


class Source:
    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = {f"w{i}": torch.randn(8, 3, generator=generator).to(dtype) for i in range(5)}

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()


class Model:
    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loaded |= {name: tensor.clone() for name, tensor in pairs}


def engine_of(kind: Any) -> Any:
    engine = object.__new__(kind)
    engine.model, engine.device = Model(), torch.device("cpu")
    engine.parallel_config = SimpleNamespace(data_parallel_index=1, world_size=2, rank=1)
    return engine


class Wire:
    """A group: carries tensors from a sender to a receiver. Of the one of that number a bit is flipped."""

    def __init__(self, flips: int | None = None) -> None:
        self.under_way: list[torch.Tensor] = []
        self.flips = flips

    def send(self, tensor: torch.Tensor) -> None:
        self.under_way.append(tensor.clone())
        if len(self.under_way) - 1 == self.flips:
            tensor = self.under_way[-1]
            tensor.view(-1).view(torch.uint8)[5] ^= 16

    def stream(self, empty: Iterable[torch.Tensor], window: int) -> Generator[torch.Tensor, None, None]:
        for room, sent in zip(empty, self.under_way, strict=True):
            yield room.copy_(sent)


def over_gloo(source: Source, wire: Wire) -> Any:
    for _, tensor in CheckedStream(source.metadata(), source):
        wire.send(tensor)
    engine = engine_of(extension.TorchWeightTransferEngine)
    engine._receiver = Receiver(engine.worker_rank, torch.float32)
    engine._receiver._groups = [wire]
    update = announced(WholeSource(source, rank=0).stages())
    engine.receive_weights(extension.TorchUpdateInfo(**asdict(update)))
    return engine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_over_gloo_the_model_gets_the_weights_alone(dtype: torch.dtype) -> None:
    source = Source(dtype)
    loaded = over_gloo(source, Wire()).model.loaded
    assert loaded.keys() == source.tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.tensors.items())


def test_over_gloo_a_flipped_bit_fails_by_tensor_and_worker() -> None:
    with pytest.raises(ChecksumError, match=r"1 of 5 tensors changed on their way to worker 3: w2 \(sent"):
        over_gloo(Source(), Wire(flips=2))


def test_over_gloo_a_flipped_bit_of_the_sums_fails_too() -> None:
    with pytest.raises(ChecksumError, match="1 of 5 tensors changed"):
        over_gloo(Source(), Wire(flips=5))


class CudaStream:
    """A stream, and all that is asked of one."""

    def synchronize(self) -> None: ...


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's own packing, without a GPU."""
    found = pytest.importorskip("vllm.distributed.weight_transfer.packed_tensor")
    monkeypatch.setattr(found, "_get_streams", lambda *_: (CudaStream(), CudaStream()))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    return found


CHUNK_BYTES = 100
"""Of vLLM's packing: two tensors to a chunk, so that the sums travel with the last or alone."""


def over_nccl(packing: Any, source: Source, wire: Wire) -> Any:
    stream = CheckedStream(source.metadata(), source)
    sending = SimpleNamespace(broadcast=lambda tensor, src: wire.send(tensor))
    packing.packed_nccl_broadcast_producer(iter(stream), sending, 0, lambda item: item[1], CHUNK_BYTES, 2)
    engine = engine_of(extension.CheckedNcclEngine)
    chunks = iter(wire.under_way)
    engine.model_update_group = SimpleNamespace(broadcast=lambda tensor, src: tensor.copy_(next(chunks)))
    engine.packed, engine.packed_num_buffers = True, 2
    engine.packed_buffer_size_bytes = CHUNK_BYTES
    names, dtypes, shapes = zip(*stream.metadata, strict=True)
    info = SimpleNamespace(names=names, dtype_names=[str(d).split(".")[-1] for d in dtypes], shapes=shapes)
    model = engine.model
    try:
        engine.receive_weights(info)
    finally:
        assert engine.model is model
    return engine


@pytest.mark.filterwarnings("ignore:Tensor .* exceeds buffer_size_bytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_nccl_the_model_gets_the_weights_alone(packing: Any, dtype: torch.dtype) -> None:
    source = Source(dtype)
    loaded = over_nccl(packing, source, Wire()).model.loaded
    assert loaded.keys() == source.tensors.keys()
    assert CHECKSUMS not in loaded
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.tensors.items())


@pytest.mark.parametrize("flips", [0, 1])
def test_by_nccl_a_flipped_bit_fails(packing: Any, flips: int) -> None:
    with pytest.raises(ChecksumError, match=r"tensors changed on their way to worker 3: w"):
        over_nccl(packing, Source(), Wire(flips))
