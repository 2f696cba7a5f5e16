"""Tensors from GPU to GPU, by vLLM's NCCL communicator. vLLM is imported when a wire is made.

A broadcast is put on a stream of its own and then waited for by asking whether it is through: NCCL itself waits
without a limit, and need not notice that a peer went away. So who leaves says so in the group's store, where the
others look while they wait.

All wires of a device share that stream, so that a worker receives from its senders strictly in the order in which
it asks. Kernels of several communicators that ran beside each other could each hold what another one needs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.weights.sync.waiting import PEER_LEFT, Refused, nobody_refused, wait_until

UNIQUE_ID = "nccl_unique_id"
"""The key under which rank 0 says by what the ranks find each other."""
LEFT = "left"
"""The key under which a rank says that it takes part no more."""
LOOK_SECONDS = 0.1
"""Between two looks at it."""


class NcclWire:
    """One rank's end. Broadcasts come from rank 0."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        device: torch.device,
        limit: timedelta,
        refused: Refused = nobody_refused,
    ) -> None:
        """Blocks until all ranks are there. Raises RuntimeError when `limit` is over or NCCL is not there, and
        what `refused` raises, which is asked meanwhile."""
        device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        self._store: dist.Store | None = store
        self._rank, self._looked = rank, 0.0
        if rank == 0:
            store.set(UNIQUE_ID, new_unique_id().hex())
        unique_id = bytes.fromhex(store.get(UNIQUE_ID).decode())
        self._communicator = _within(limit, partial(joined, unique_id, rank, world_size, device), refused)
        self._stream = stream_of(device)
        self._under_way: deque[NcclBroadcast] = deque()
        """Held until they are through, so that the allocator gives their memory to nobody else."""

    def start(self, tensor: torch.Tensor) -> NcclBroadcast:
        """Send the contiguous tensor (rank 0), or receive it in place (all others)."""
        # What writes the tensor, or still reads what was in its memory before, is on the current stream.
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        # As bytes, since NCCL does not know every dtype.
        self._communicator.broadcast(tensor.view(-1).view(torch.uint8), src=0, stream=self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        begun = NcclBroadcast(self, tensor, event)
        self._under_way.append(begun)
        return begun

    def let_go(self) -> None:
        """Hold tensors that are through no longer."""
        while self._under_way and self._under_way[0].is_through():
            self._under_way.popleft()

    def look(self) -> None:
        """Raises RuntimeError where a rank has left, this one among them."""
        if self._store is None:
            raise RuntimeError(f"this rank {PEER_LEFT}")
        if time.monotonic() < self._looked + LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._store.check([LEFT]):
            raise RuntimeError(f"rank {self._store.get(LEFT).decode()} {PEER_LEFT}")

    def close(self) -> None:
        """Leave. A rank that waits hears of it; what is under way here has not arrived."""
        if self._store is None:
            return
        with suppress(RuntimeError):  # rank 0, whose store it is, has left before
            self._store.set(LEFT, str(self._rank))
        self._store = None
        self._communicator.destroy()
        for given_up in self._under_way:
            given_up.keep_until_read(self._stream)
        self._under_way.clear()


class NcclBroadcast:
    """One that was started."""

    def __init__(self, wire: NcclWire, tensor: torch.Tensor, event: torch.cuda.Event) -> None:
        self._wire, self._tensor, self._event = wire, tensor, event

    def wait(self, limit: timedelta, refused: Refused) -> None:
        """Until it is through: the tensor may then be read on every stream, and freed.

        Raises RuntimeError when `limit` is over or a rank has left, and what `refused` raises.
        """

        def asked() -> None:
            refused()
            self._wire.look()

        wait_until(self.is_through, limit, asked)
        if self._wire._store is None:  # one that was aborted counts as through
            raise RuntimeError(f"this rank {PEER_LEFT}")
        self._wire.let_go()

    def is_through(self) -> bool:
        return bool(self._event.query())

    def keep_until_read(self, stream: torch.cuda.Stream) -> None:
        """Have the allocator keep the memory until the stream is done with what was put on it so far."""
        self._tensor.record_stream(stream)


@cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device's broadcasts; always the same, as the allocator keeps memory by stream."""
    return torch.cuda.Stream(device)


def new_unique_id() -> bytes:
    """Bytes by which the ranks of one communicator find each other. Raises RuntimeError without NCCL."""
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

    try:
        made = NCCLLibrary().ncclGetUniqueId()
    except (OSError, ValueError) as error:
        raise RuntimeError(f"NCCL cannot be loaded: {error}") from error
    return bytes(made)


def joined(unique_id: bytes, rank: int, world_size: int, device: torch.device) -> Any:
    """vLLM's communicator, once all ranks are there and a first broadcast has gone through.

    NCCL connects the ranks for a kind of collective when the first one is asked for, and blocks in it.
    """
    from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

    torch.cuda.set_device(device)  # of this thread
    communicator = uid_init_process_group(unique_id, rank, world_size, device)
    if communicator.disabled:  # it would broadcast nothing, without a word
        raise RuntimeError("vLLM has disabled NCCL (VLLM_DISABLE_PYNCCL); weights between GPUs need it")
    stream = torch.cuda.current_stream(device)
    communicator.broadcast(torch.zeros(1, dtype=torch.uint8, device=device), src=0, stream=stream)
    stream.synchronize()
    return communicator


def _within(limit: timedelta, join: Callable[[], Any], refused: Refused) -> Any:
    """What `join` returns, from a thread of its own: NCCL waits for its ranks without a limit, and vLLM gives the
    calling thread another current stream, on which a trainer would go on training.

    Raises RuntimeError when `limit` is over, and what `refused` raises. The thread is left behind then; a
    communicator that it makes later is destroyed.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            communicator = join()
        except BaseException as error:
            with suppress(InvalidStateError):
                result.set_exception(error)
            return
        try:
            result.set_result(communicator)
        except InvalidStateError:  # nobody waits for it any more
            communicator.destroy()

    threading.Thread(target=run, name="weights-nccl", daemon=True).start()
    try:
        wait_until(result.done, limit, refused)
    finally:
        result.cancel()  # nothing, once it is done
    return result.result()
