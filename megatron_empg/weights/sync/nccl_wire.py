"""Tensors from GPU to GPU, by vLLM's NCCL communicator. vLLM is imported when a wire is made.

A broadcast is put on a stream of its own and then waited for by asking whether it is through: NCCL itself waits
without a limit. All wires of a device share that stream, so that a worker receives from its senders strictly in
the order in which it asks. Kernels of several communicators that ran beside each other could each hold what
another one needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_empg.weights.sync.waiting import Refused, wait_until

UNIQUE_ID = "nccl_unique_id"
"""The key under which rank 0 says by what the ranks find each other."""


class NcclWire:
    """One rank's end. Broadcasts come from rank 0."""

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, device: torch.device, limit: timedelta
    ) -> None:
        """Blocks until all ranks are there; raises RuntimeError when `limit` is over or NCCL is not there."""
        device = device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
        if rank == 0:
            store.set(UNIQUE_ID, new_unique_id().hex())
        unique_id = bytes.fromhex(store.get(UNIQUE_ID).decode())
        join = partial(joined, unique_id, rank, world_size, device)
        self._communicator = _within(limit, "NCCL's ranks did not all come", join)
        self._stream = stream_of(device)

    def start(self, tensor: torch.Tensor) -> NcclBroadcast:
        """Send the contiguous tensor (rank 0), or receive it in place (all others)."""
        # What writes the tensor, or still reads what was in its memory before, is on the current stream.
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        tensor.record_stream(self._stream)
        # As bytes, since NCCL does not know every dtype.
        self._communicator.broadcast(tensor.view(-1).view(torch.uint8), src=0, stream=self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return NcclBroadcast(event)

    def close(self) -> None:
        """Wakes what is under way on this rank; it has not arrived then."""
        self._communicator.destroy()


class NcclBroadcast:
    """One that was started."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self, limit: timedelta, refused: Refused) -> None:
        """Until it is through: the tensor may then be read on every stream, and freed. Raises RuntimeError when
        `limit` is over, and what `refused` raises: NCCL itself need not notice that a peer went away."""
        wait_until(self._event.query, limit, refused)


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
    """vLLM's communicator, once all ranks are there."""
    from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

    torch.cuda.set_device(device)  # of this thread
    communicator = uid_init_process_group(unique_id, rank, world_size, device)
    if communicator.disabled:  # it would broadcast nothing, without a word
        raise RuntimeError("vLLM has disabled NCCL (VLLM_DISABLE_PYNCCL); weights between GPUs need it")
    return communicator


def _within(limit: timedelta, what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, from a thread of its own: NCCL waits for its ranks without a limit, and vLLM gives the
    calling thread another current stream, on which a trainer would go on training.

    Raises RuntimeError when `limit` is over; the thread is left behind, and ends with the process.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="weights-nccl", daemon=True).start()
    try:
        return result.result(limit.total_seconds())
    except TimeoutError:
        raise RuntimeError(f"{what} in {limit.total_seconds():.0f} s") from None
