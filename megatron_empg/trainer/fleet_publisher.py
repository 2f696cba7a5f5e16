"""New weights to the engines that answer, and word of it to the rollout service. Of the trainer's rank 0 alone."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from megatron_empg.common.errors import EmpgError
from megatron_empg.weights.sync.engine_control import WeightTransferError
from megatron_empg.weights.sync.held_version import NEVER_TOLD

if TYPE_CHECKING:
    from megatron_empg.actor.weights import ActorWeights

_log = logging.getLogger(__name__)
MOST_PASSES = 4
"""Times that all tensors are sent for one version, after which the run ends by the last failure."""
MOST_BLAMED = 2
"""Failures of one version by the same engine, after which the others get it without that one."""
LOOK_AGAIN_SECONDS = 1.0


class SyncBrokeOff(EmpgError, RuntimeError):
    """Not every engine got the weights: all ranks gather them once more."""


class NoEngineAnswers(EmpgError, RuntimeError):
    """No engine could be given the weights within the time for it."""

    accident = True


class Sender(Protocol):
    """A group of the trainer and some engines, as `WeightPublisher` is."""

    def connect(self, source: ActorWeights) -> None: ...

    def publish(self, source: ActorWeights, version: int) -> object: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Senses:
    """How it sees engines; a test has its own. `held`: what an engine says of its weights, None if nothing."""

    held: Callable[[str], str | None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass
class FleetPublisher:
    """`make` makes a group of some engines. `tell` is called with the engines that hold a version, once they do.

    `patience`: seconds within which an engine must answer where none does, since each may be started again.
    """

    urls: Sequence[str]
    make: Callable[[Sequence[str]], Sender]
    tell: Callable[[Sequence[str], int], None]
    senses: Senses
    patience: float
    _sender: Sender | None = None
    _joined: tuple[str, ...] = ()
    """The engines of the sender's group."""
    _version: int | None = None
    """What those were sent last, if anything."""
    _passes: int = 0
    _blamed: Counter[str] = field(default_factory=Counter)

    def publish(self, source: ActorWeights, version: int, only: Sequence[str] | None = None) -> None:
        """Send this version to the engines that answer, or to `only` some, and tell of it.

        The source is gathered once, or not at all where this raises NoEngineAnswers. Raises SyncBrokeOff where all
        ranks must gather it again. Engines of `only` that cannot be reached are left for another time.
        """
        try:
            reached = self._join(source, only)
        except NoEngineAnswers:
            if only is None:
                raise
            _gather(source)
            return
        assert self._sender is not None
        try:
            self._sender.publish(source, version)
        except WeightTransferError as error:
            self._broke_off(error)
            if only is not None:
                return
            self._count_pass(error)
            raise SyncBrokeOff(f"version {version}: {error}") from error
        self._version, self._passes = version, 0
        self._blamed.clear()
        self.urls = list(dict.fromkeys([*self.urls, *reached]))  # one that came to the run is one of them now
        self.tell(reached, version)
        missing = [url for url in self.urls if url not in reached]
        if missing and only is None:
            _log.warning("version %d has not reached %s", version, ", ".join(missing))

    def refit(self, source: ActorWeights, version: int, engines: Sequence[str]) -> None:
        """`publish` to some engines alone, while the others go on."""
        self.publish(source, version, engines)

    def close(self) -> None:
        """Leave the engines to themselves."""
        if self._sender is not None:
            self._sender.close()
        self._sender, self._joined, self._version = None, (), None

    def _join(self, source: ActorWeights, only: Sequence[str] | None) -> tuple[str, ...]:
        """Those that will be sent to: the group there is, if it is still theirs, else a new one."""
        until = self.senses.clock() + (self.patience if only is None else 0.0)
        while True:
            answering = self._answering(self.urls if only is None else only)
            if answering and (self._is_whole(answering) or self._connect(source, tuple(answering))):
                return tuple(answering)
            if self.senses.clock() >= until:
                raise NoEngineAnswers(
                    f"no engine of {', '.join(only or self.urls)} could be given the weights within "
                    f"{self.patience:.0f} s (limits.rollout_timeout); their logs say why"
                )
            self.senses.sleep(LOOK_AGAIN_SECONDS)

    def _answering(self, urls: Sequence[str]) -> dict[str, str]:
        """What those that answer say of their weights, without those that have failed this version often."""
        asked = [url for url in urls if self._blamed[url] < MOST_BLAMED]
        if not asked:
            return {}
        with ThreadPoolExecutor(len(asked)) as pool:
            said = list(pool.map(self.senses.held, asked))
        return {url: held for url, held in zip(asked, said, strict=True) if held is not None}

    def _is_whole(self, answering: dict[str, str]) -> bool:
        """Whether the group is of these engines, and none of them was started again since it was sent to."""
        if self._sender is None or tuple(answering) != self._joined:
            return False
        return self._version is None or NEVER_TOLD not in answering.values()

    def _connect(self, source: ActorWeights, urls: tuple[str, ...]) -> bool:
        """A new group of these engines; False where one of them failed."""
        self.close()
        sender = self.make(urls)
        try:
            sender.connect(source)
        except WeightTransferError as error:
            sender.close()
            self._blamed.update(error.engines)
            _log.warning("%s", error)
            return False
        except OSError as error:  # such as the port of the group before, which is not free yet
            sender.close()
            _log.warning("no group of %s could be made: %s", ", ".join(urls), error)
            return False
        except BaseException:
            sender.close()
            raise
        self._sender, self._joined = sender, urls
        return True

    def _broke_off(self, error: WeightTransferError) -> None:
        """The group is no more; another one may do without those that failed."""
        self.close()
        self._blamed.update(error.engines)
        _log.warning("%s; it is tried again with the engines that answer", error)

    def _count_pass(self, error: WeightTransferError) -> None:
        """Raises the error itself after too many."""
        self._passes += 1
        if self._passes >= MOST_PASSES:
            raise error


def _gather(source: ActorWeights) -> None:
    """The other ranks of the replica gather every tensor with this one, whoever gets it."""
    for _ in source:
        continue
