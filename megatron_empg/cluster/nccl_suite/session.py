"""One run of the suite on one rank: the process groups, numbered steps under watch, and planted faults."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from megatron_empg.actor.config import ActorConfig
from megatron_empg.cluster.nccl_suite.arrival import ArrivalWatch
from megatron_empg.cluster.nccl_suite.collectives import CollectiveCase, CollectiveExchange, GroupMembers
from megatron_empg.cluster.nccl_suite.faults import SuiteFault
from megatron_empg.cluster.nccl_suite.layout import rank_groups
from megatron_empg.cluster.place import PlaceError, RankPlace

Backend = Literal["nccl", "gloo"]
Injection = Literal["corrupt", "delay", "missing"]
DELAY = 0.5
_MISSING_AFTER = 8  # steps: some are seen to work first


@dataclass(frozen=True)
class PlantedFault:
    """A fault planted on one rank, to see that it is found."""

    kind: Injection
    rank: int


class SuiteSession:
    """Joins the ranks. Raises PlaceError naming those that do not come in time, LayoutError for groups that
    cannot be.

    ``start_limit``: seconds until all ranks are there, which import torch from one file system at once, and again
    for the first operation of every group, in which NCCL connects them.
    """

    def __init__(
        self,
        place: RankPlace,
        backend: Backend,
        *,
        layout: ActorConfig,
        step_limit: float = 60.0,
        start_limit: float = 600.0,
        time_limit: float = 1800.0,
        inject: PlantedFault | None = None,
        report: Callable[[SuiteFault], None] = lambda fault: None,
    ) -> None:
        self.place, self.backend = place, backend
        self.inject = inject if inject and inject.rank == place.rank else None
        if inject and inject.rank >= place.world_size:
            raise PlaceError(
                f"a fault cannot be planted on rank {inject.rank}: there are {place.world_size} ranks"
            )
        lists = rank_groups(layout, place.world_size)
        store = place.connect(start_limit)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a restart
        self.store = dist.PrefixStore(f"nccl_suite/{attempt}", store)
        self.nodes = self._roll_call(start_limit)
        self.names = [f"{node}, local rank {local}" for node, local in self.nodes]
        self.device = torch.device("cpu")
        if backend == "nccl":
            self.device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        if place.port:
            own = place.connect(start_limit, host=False)
        else:
            own = store
        self.watch = ArrivalWatch(
            dist.PrefixStore(f"nccl_suite/{attempt}/watch", own),
            place.rank,
            self.names,
            step_limit=step_limit,
            time_limit=time_limit,
            report=report,
        )
        self.watch.start()
        self._seed = 0
        self.groups = self._join(lists, start_limit, step_limit)

    def _join(
        self, lists: dict[str, list[list[int]]], start_limit: float, step_limit: float
    ) -> dict[str, GroupMembers]:
        """This rank's group of every kind."""
        everyone = range(self.place.world_size)
        with self.step("start of the process groups", everyone, start_limit):
            dist.init_process_group(
                self.backend,
                store=dist.PrefixStore("groups", self.store),
                rank=self.place.rank,
                world_size=self.place.world_size,
                timeout=timedelta(seconds=max(start_limit, step_limit) + 60),  # the watch comes first
            )
            # NCCL connects a group in its first operation, which all its ranks must be in; the world comes first.
            dist.all_reduce(torch.zeros(1, device=self.device))
            mine: dict[str, GroupMembers] = {}
            for kind, groups in lists.items():
                for ranks in groups:
                    if kind == "world":
                        group = dist.group.WORLD
                    else:
                        group = dist.new_group(ranks)
                    if self.place.rank in ranks:
                        dist.all_reduce(torch.zeros(1, device=self.device), group=group)
                        mine[kind] = GroupMembers(kind, tuple(ranks), group, ranks.index(self.place.rank))
            self.synchronize()
        return mine

    def _roll_call(self, limit: float) -> list[tuple[str, int]]:
        """(node, local rank) of every rank."""
        place = self.place
        self.store.set(f"here/{place.rank}", json.dumps([place.node, place.local_rank]))
        deadline = time.monotonic() + limit
        awaited = set(range(place.world_size))
        while awaited:
            try:
                awaited -= {rank for rank in awaited if self.store.check([f"here/{rank}"])}
            except dist.DistError as error:
                raise PlaceError(
                    f"rank {place.rank} lost rank 0, which holds the store, while ranks "
                    f"{', '.join(map(str, sorted(awaited)))} had not come: {str(error).splitlines()[0]}"
                ) from None
            if awaited and time.monotonic() > deadline:
                raise PlaceError(
                    f"rank {', '.join(map(str, sorted(awaited)))} of {place.world_size} did not start within "
                    f"{limit:.0f} s; ranks have come from {', '.join(self._here()) or 'nowhere'}"
                )
            if awaited:
                time.sleep(0.1)
        return [self._place_of(rank) for rank in range(place.world_size)]

    def _here(self) -> list[str]:
        """Nodes of the ranks that have come."""
        nodes = set()
        for rank in range(self.place.world_size):
            if self.store.check([f"here/{rank}"]):
                nodes.add(self._place_of(rank)[0])
        return sorted(nodes)

    def _place_of(self, rank: int) -> tuple[str, int]:
        """Node and local rank of one that has come."""
        node, local_rank = json.loads(self.store.get(f"here/{rank}"))
        return node, local_rank

    @contextlib.contextmanager
    def step(self, label: str, members: Sequence[int], limit: float | None = None) -> Iterator[None]:
        """Enter a numbered step in which these ranks wait for each other; errors inside end the suite.

        ``limit``: seconds it may take, if not the step limit.
        """
        self._stay_away()
        self.watch.enter(label, members, limit)
        try:
            yield
        except (RuntimeError, ValueError, NotImplementedError) as error:
            lines = str(error).splitlines()
            self.watch.fail(f"{type(error).__name__}: {lines[0] if lines else ''}")
        self.watch.leave()

    def _stay_away(self) -> None:
        """A planted absence: this rank's main thread never comes to the step."""
        if self.inject and self.inject.kind == "missing" and self.watch.number >= _MISSING_AFTER:
            while True:  # the watch ends the process
                time.sleep(60)

    def case(self, members: GroupMembers, dtype: torch.dtype, size: int) -> CollectiveCase:
        """A case with a seed of its own, the same on all ranks."""
        self._seed += 1
        return CollectiveCase(members, dtype, size, self._seed, self.device)

    def run(self, exchange: CollectiveExchange) -> None:
        """Run to the end, also on the device."""
        if self.inject and self.inject.kind == "corrupt":
            for buffer in exchange.sent:
                bits = buffer.view(torch.uint8)
                bits[(bits.numel() - 1) // 2] ^= 0x41
        exchange.run()
        self.synchronize()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def exchange(self, name: str, value: Any) -> list[Any]:
        """Every rank's value (JSON), in rank order, on rank 0; others get an empty list."""
        size = self.place.world_size
        with self.step(f"results of {name}", range(size)):
            self._seed += 1
            key = f"{name}/{self._seed}"
            self.store.set(f"{key}/{self.place.rank}", json.dumps(value))
            if self.place.rank == 0:
                return [json.loads(self.store.get(f"{key}/{rank}")) for rank in range(size)]
        return []

    def agree(self, name: str, value: Any) -> Any:
        """Rank 0's value (JSON) on every rank."""
        with self.step(f"word of rank 0 on {name}", range(self.place.world_size)):
            self._seed += 1
            key = f"{name}/{self._seed}"
            if self.place.rank == 0:
                self.store.set(key, json.dumps(value))
            return json.loads(self.store.get(key))

    def close(self) -> None:
        """Leave together: rank 0 last, since it holds the store."""
        self.exchange("end", None)
        with self.step("end of the process groups", range(self.place.world_size)):
            dist.destroy_process_group()
        self.store.set(f"left/{self.place.rank}", "")
        if self.place.hosts_store:
            left = [f"left/{rank}" for rank in range(self.place.world_size)]
            with contextlib.suppress(RuntimeError, dist.DistError):
                self.store.wait(left, timedelta(seconds=10))
        self.watch.close()
