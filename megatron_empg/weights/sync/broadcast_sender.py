"""The trainer's ends of a weight transfer by broadcasts."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from traceback import clear_frames

import torch
import torch.distributed as dist

from megatron_empg.common.dtypes import name_of
from megatron_empg.weights.sync.broadcast import CPU, BroadcastGroup, devices_at, open_store, workers_at
from megatron_empg.weights.sync.checksums import CHECKSUMS
from megatron_empg.weights.sync.engine_control import EngineControl, WeightTransferError
from megatron_empg.weights.sync.receiver import AnnouncedTensors, SenderAddresses
from megatron_empg.weights.sync.source import AssignedTensor, CheckedStream

COLLECTIVE_SHARE = 0.5
"""Of the time that an attempt may take, what a single broadcast may wait for an engine: so the engines' own
account of a peer that fell silent comes before their answer is no longer waited for."""
Address = tuple[str, int]
UNKNOWN = "(engine unknown)"
POLL_SECONDS = 0.02
ACCOUNT_SECONDS = 20.0
"""That engines have to say why a collective failed."""


class BroadcastSender:
    """A trainer rank that sends: rank 0 of its own group with every engine worker."""

    def __init__(self, host: str, port: int, world_size: int, timeout: float, device: torch.device = CPU) -> None:
        """Opens the rendezvous. `port` 0 is a free one; `timeout`: seconds that a broadcast may wait; `device`:
        where the tensors are sent from.

        Raises WeightTransferError where the port cannot be had, such as that of a group before, which is not free
        yet.
        """
        self._host, self._world_size, self._timeout, self._device = host, world_size, timeout, device
        self._store: dist.TCPStore | None = None
        try:
            self._store = open_store(host, port, world_size, timeout)
        except OSError as error:
            raise WeightTransferError("connect", {f"trainer at {host}:{port}": str(error)}) from error
        self._group: BroadcastGroup | None = None
        self.address: Address = (host, self._store.port)
        """Where workers meet it."""

    def join(self, refused: Callable[[], None] = lambda: None) -> None:
        """Wait for the workers; `refused` is asked meanwhile, and raises where an engine will not come.

        Raises WeightTransferError.
        """
        assert self._store is not None
        try:
            self._await_workers(refused)
            self._refuse_other_devices()
            self._group = BroadcastGroup(
                self._host, self._store, 0, self._world_size, self._timeout, device=self._device, refused=refused
            )
        except WeightTransferError:
            raise
        except RuntimeError as error:
            clear_frames(error.__traceback__)  # which hold the store, and with it the port
            raise WeightTransferError("connect", {UNKNOWN: str(error)}) from error

    def _await_workers(self, refused: Callable[[], None]) -> None:
        """The group's own waiting could not be broken off. Nothing here holds the store, which an error's
        traceback would keep open, and with it the workers that came."""
        until = time.monotonic() + self._timeout
        workers = self._world_size - 1
        while True:
            assert self._store is not None
            there = workers_at(self._store, self._world_size)
            if there == workers:
                return
            refused()
            if time.monotonic() > until:
                raise RuntimeError(f"{there} of {workers} workers came in {self._timeout:.0f} s")
            time.sleep(POLL_SECONDS)

    def _refuse_other_devices(self) -> None:
        assert self._store is not None
        found = devices_at(self._store, self._world_size)
        if found != {self._device.type}:
            said = f"engines have their weights on {', '.join(sorted(found))}, the trainer on {self._device.type}"
            what = f"{said}; trainer and engines are all on GPUs, or all on CPUs"
            raise WeightTransferError("connect", {f"trainer at {self._host}": what}, passing=False)

    def serves(self) -> set[torch.dtype]:
        """The dtypes of the engines' weights."""
        assert self._group is not None
        return self._group.serves()

    def send(self, stream: CheckedStream, seconds: float, refused: Callable[[], None] = lambda: None) -> None:
        """Broadcast all of it within `seconds`; `refused` is asked meanwhile, and raises where engines have.

        Raises WeightTransferError. The group is closed then, so that the engines do not wait for more.
        """
        assert self._group is not None
        deadline = time.monotonic() + seconds

        def over() -> None:
            refused()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the weights were not through in {seconds:.0f} s")

        tensors = (tensor for _name, tensor in stream)
        try:
            with contextlib.closing(self._group.stream(tensors, over)) as sent:
                for _ in sent:
                    over()
        except BaseException as error:
            self.close()
            of_the_group = isinstance(error, RuntimeError) and error is not stream.error
            if isinstance(error, WeightTransferError) or not of_the_group:
                raise
            raise WeightTransferError("transfer", {UNKNOWN: str(error)}) from error

    def close(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group, self._store = None, None  # and with the store its port


class BroadcastSession:
    """Rank 0's part: what it tells the engines while it and the other senders send."""

    def __init__(self, engines: EngineControl) -> None:
        self._engines = engines
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights-rpc")
        self._joined: Future[None] | None = None

    def join(self, addresses: Sequence[Address], sender: BroadcastSender, timeout: float) -> None:
        """Send the engines' workers to all senders, and wait for them at `sender`, this rank's.

        Raises WeightTransferError, at once where an engine refuses.
        """
        world_size = 1 + sum(self._engines.world_sizes)
        meeting = SenderAddresses([[host, port] for host, port in addresses], 1, world_size, timeout)
        # Engines and senders wait for each other, so the request must be under way while we join.
        joined = self._thread.submit(self._engines.init_weight_transfer_engine, asdict(meeting))

        def refused() -> None:
            trouble = self._engines.trouble()  # the others wait for that engine, so the call itself is not over
            if trouble is not None:
                raise trouble
            if joined.done():
                joined.result()

        try:
            sender.join(refused)
        except WeightTransferError as error:
            trouble = self._engines.trouble()
            if trouble is not None:
                raise trouble from None
            raise self._cause(joined, error) from error
        self._joined = joined

    def wait_joined(self) -> None:
        """Returns when the workers have come to all senders. Raises WeightTransferError."""
        assert self._joined is not None
        self._joined.result()

    def begin(self) -> None:
        self._engines.start_weight_update()

    def send(self, update: AnnouncedTensors, sender: BroadcastSender, stream: CheckedStream) -> None:
        """Send this rank's part while the engines receive all senders'; returns when they hold every weight."""
        received = self._thread.submit(self._engines.update_weights, asdict(update))

        def refused() -> None:
            # The others wait for an engine that has refused, so the call itself is not over.
            culprits = self._engines.culprits()
            if culprits is not None:
                raise culprits

        try:
            sender.send(stream, self._engines.remaining(), refused)
        except WeightTransferError as error:
            raise self._cause(received, error) from error
        while not received.done():
            refused()
            wait([received], timeout=POLL_SECONDS)
        received.result()
        self._engines.finish_weight_update()

    def _cause(self, reply: Future[None], error: WeightTransferError) -> WeightTransferError:
        """The engines' own account of a failed collective, if one comes soon; else those that give none."""
        until = time.monotonic() + ACCOUNT_SECONDS
        while not reply.done() and time.monotonic() < until:
            culprits = self._engines.culprits()
            if culprits is not None:
                return culprits
            wait([reply], timeout=POLL_SECONDS)
        if reply.done() and isinstance(failure := reply.exception(), WeightTransferError):
            return failure
        silent = self._engines.silent()
        if not silent:
            return error
        return WeightTransferError(error.phase, dict.fromkeys(silent, f"has not answered; {error}"))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def announced(stages: Sequence[Sequence[AssignedTensor]]) -> AnnouncedTensors:
    """The tensors in an order in which all stages are under way from beginning to end, then the checksums.

    By the bytes that a stage has sent before. A stage's own order stays: its ranks make tensors together, and one
    that had to wait until a later tensor was taken could not help with the earlier one.
    """
    rows = []
    for number, stage in enumerate(stages):
        before = 0
        for sent in stage:
            rows.append((before, number, sent))
            before += sent.bytes
    rows.sort(key=lambda row: row[:2])
    order = [sent for _before, _number, sent in rows]
    counts = Counter(sent.sender for sent in order)
    for sender in sorted(counts):
        order.append(AssignedTensor(sender, CHECKSUMS, torch.int64, (counts[sender],)))
    return AnnouncedTensors(
        names=[sent.name for sent in order],
        dtype_names=[name_of(sent.dtype) for sent in order],
        shapes=[list(sent.shape) for sent in order],
        senders=[sent.sender for sent in order],
    )
