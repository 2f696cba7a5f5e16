"""New weights to the engines that answer, and word of it to the rollout service."""

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
from megatron_empg.weights.sync.together import Alone, Ranks

if TYPE_CHECKING:
    from megatron_empg.actor.weights import ActorWeights

_log = logging.getLogger(__name__)
MOST_PASSES = 4
"""Times that all tensors are sent for one version, after which the run ends by the last failure."""
MOST_BLAMED = 2
"""Failures of one version by the same engine, after which the others get it without that one."""
LOOK_AGAIN_SECONDS = 1.0


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


@dataclass(frozen=True)
class Choice:
    """The engines that are sent to, none where none answers. `joined`: the group there is, is theirs."""

    urls: tuple[str, ...]
    joined: bool = False


@dataclass
class FleetPublisher:
    """Every trainer rank has one and enters its methods with the others of `ranks`; rank 0 alone asks engines.

    `make` makes a group of some engines. `tell` is called on rank 0 with the engines that hold a version, once
    they do. `patience`: seconds within which an engine must answer where none does, since each may be started
    again.
    """

    urls: Sequence[str]
    make: Callable[[Sequence[str]], Sender]
    tell: Callable[[Sequence[str], int], None]
    senses: Senses
    patience: float
    ranks: Ranks = field(default_factory=Alone)
    _sender: Sender | None = None
    _joined: tuple[str, ...] = ()
    """The engines of the sender's group."""
    _version: int | None = None
    """What those were sent last, if anything."""
    _passes: int = 0
    _blamed: Counter[str] = field(default_factory=Counter)

    def publish(self, source: ActorWeights, version: int) -> None:
        """Send this version to the engines that answer, and tell of it. A pass that breaks off is followed by
        another one, whole, with those that answer then.

        Raises NoEngineAnswers, WeightTransferError after too many passes, and what the source raises.
        """
        while True:
            reached = self._join(source, self.urls, self.patience)
            if not reached:
                raise NoEngineAnswers(
                    f"no engine of {', '.join(self.urls)} could be given the weights within "
                    f"{self.patience:.0f} s (limits.rollout_timeout); their logs say why"
                )
            fault = self._send(source, version, reached)
            if fault is None:
                break
            self._passes += 1
            if self._passes >= MOST_PASSES:
                raise fault
        missing = [url for url in self.urls if url not in reached]
        if missing and self.ranks.rank == 0:
            _log.warning("version %d has not reached %s", version, ", ".join(missing))

    def refit(self, source: ActorWeights, version: int, engines: Sequence[str]) -> None:
        """Send the version to some engines alone, which came back without it, while the others go on. Those that
        cannot be reached are left for another time. Raises what the source raises.
        """
        reached = self._join(source, engines, 0.0)
        if reached:
            self._send(source, version, reached)

    def close(self) -> None:
        """Leave the engines to themselves."""
        if self._sender is not None:
            self._sender.close()
        self._sender, self._joined, self._version = None, (), None

    def _send(self, source: ActorWeights, version: int, reached: Sequence[str]) -> WeightTransferError | None:
        """One pass over all tensors, to the group; what it broke off of, on every rank, if it did."""
        assert self._sender is not None
        try:
            self._sender.publish(source, version)
        except WeightTransferError as error:
            self._broke_off(error)
            return error
        self._version, self._passes = version, 0
        self._blamed.clear()
        self.urls = list(dict.fromkeys([*self.urls, *reached]))  # one that came to the run is one of them now
        if self.ranks.rank == 0:
            self.tell(reached, version)
        return None

    # --- which engines -----------------------------------------------------------------------------------------

    def _join(self, source: ActorWeights, urls: Sequence[str], patience: float) -> tuple[str, ...]:
        """Those that will be sent to: the group there is, if it is still theirs, else a new one. Empty where none
        could be joined in time."""
        until = self.senses.clock() + patience
        again = False
        while True:
            choice = self._choice(urls, until, again=again)
            if not choice.urls or choice.joined or self._connect(source, choice.urls):
                return choice.urls
            again = True

    def _choice(self, urls: Sequence[str], until: float, *, again: bool) -> Choice:
        """Rank 0's, on every rank. `again`: it was tried before, so that time may be over though some answer."""
        own = Choice(())
        if self.ranks.rank == 0:
            own = self._look(urls, until, again=again)
        return self.ranks.gathered(own)[0]

    def _look(self, urls: Sequence[str], until: float, *, again: bool) -> Choice:
        while True:
            answering = self._answering(urls)
            late = self.senses.clock() >= until
            if answering and not (again and late):
                return Choice(tuple(answering), self._is_whole(answering))
            if late:
                return Choice(())
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
            self._broke_off(error)
            return False
        except BaseException:
            sender.close()
            raise
        self._sender, self._joined = sender, urls
        return True

    def _broke_off(self, error: WeightTransferError) -> None:
        """The group is no more; another one may do without those that failed. Raises the error where it would come
        again.
        """
        self.close()
        if not error.passing:
            raise error
        self._blamed.update(error.engines)
        if self.ranks.rank == 0:
            _log.warning("%s; it is tried again with the engines that answer", error)
