"""What an engine's worker receives is held against what was sent.

The groups are stand-ins that carry, and here and there change, what would go over the wire.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_empg.weights.sync.broadcast import Broadcast
from megatron_empg.weights.sync.broadcast_sender import announced
from megatron_empg.weights.sync.checksums import ChecksumError
from megatron_empg.weights.sync.receiver import Receiver
from megatron_empg.weights.sync.source import CheckedStream, WholeSource
from megatron_empg.weights.sync.waiting import Refused

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

    def start(self, room: torch.Tensor) -> Broadcast:
        return Broadcast(room.copy_(self.under_way.pop(0)), Through(), timedelta(seconds=1))


class Through:
    """A broadcast that is over as soon as it is started."""

    def wait(self, limit: timedelta, refused: Refused) -> None: ...


def received(source: Source, wire: Wire) -> Any:
    for _, tensor in CheckedStream(source.metadata(), source):
        wire.send(tensor)
    engine = engine_of(extension.BroadcastWeightEngine)
    engine._receiver = Receiver(engine.worker_rank, torch.float32)
    engine._receiver._groups = [wire]
    update = announced(WholeSource(source, rank=0).stages())
    engine.receive_weights(extension.BroadcastUpdateInfo(**asdict(update)))
    return engine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_gets_the_weights_alone(dtype: torch.dtype) -> None:
    source = Source(dtype)
    loaded = received(source, Wire()).model.loaded
    assert loaded.keys() == source.tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.tensors.items())


def test_a_flipped_bit_fails_by_tensor_and_worker() -> None:
    with pytest.raises(ChecksumError, match=r"1 of 5 tensors changed on their way to worker 3: w2 \(sent"):
        received(Source(), Wire(flips=2))


def test_a_flipped_bit_of_the_sums_fails_too() -> None:
    with pytest.raises(ChecksumError, match="1 of 5 tensors changed"):
        received(Source(), Wire(flips=5))
