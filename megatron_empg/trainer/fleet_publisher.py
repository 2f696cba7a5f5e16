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
from megatron_empg.weights.sync.together import PublishingRanks, SingleProcess

if TYPE_CHECKING:
    from megatron_empg.actor.weights import ActorWeights

_log = logging.getLogger(__name__)
MOST_PASSES = 4
"""Times that all tensors are sent for one version, after which the run ends by the last failure."""
MOST_BLAMED = 2
"""Failures of one version by the same engine, after which the others get it without that one."""
SHARE = 0.5
"""Of the time for which engines may still be paused, what a pass may take, and the joining before it."""
LOOK_AGAIN_SECONDS = 1.0


class NoEngineAnswers(EmpgError, RuntimeError):
    """No engine could be given the weights within the time for it."""

    accident = True


class Sender(Protocol):
    """A group of the trainer and some engines, as `WeightPublisher` is. Both methods end within the seconds that
    rank 0 gives."""

    def connect(self, source: ActorWeights, seconds: float) -> None: ...

    def publish(self, source: ActorWeights, version: int, seconds: float) -> object: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class EngineSenses:
    """How it sees engines; a test has its own. `held`: what an engine says of its weights, None if nothing."""

    held: Callable[[str], str | None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class ChosenEngines:
    """The engines that are sent to, none where none answers. `joined`: the group there is, is theirs."""

    urls: tuple[str, ...]
    joined: bool = False


@dataclass
class FleetPublisher:
    """Every trainer rank has one and enters its methods with the others of `ranks`; rank 0 alone asks engines, and
    its clock alone counts.

    `make` makes a group of some engines. `tell` is called on rank 0 with the engines that hold a version, once
    they do. `patience`: seconds within which an engine must answer where none does, since each may be started
    again. `limit`: seconds for which a version may keep engines paused, all passes together.
    """

    urls: Sequence[str]
    make: Callable[[Sequence[str]], Sender]
    tell: Callable[[Sequence[str], int], None]
    senses: EngineSenses
    patience: float
    limit: float
    ranks: PublishingRanks = field(default_factory=SingleProcess)
    _sender: Sender | None = None
    _joined: tuple[str, ...] = ()
    """The engines of the sender's group."""
    _version: int | None = None
    """What those were sent last, if anything."""
    _paused: float | None = None
    """When engines were first paused for the version under way, if some may still be."""
    _blamed: Counter[str] = field(default_factory=Counter)
    """Failures of each engine in the version under way."""

    def publish(self, source: ActorWeights, version: int) -> None:
        """Send this version to the engines that answer, and tell of it. A pass that breaks off is followed by
        another one, whole, with those that answer then.

        Raises NoEngineAnswers, WeightTransferError after too many passes, and what the source raises.
        """
        self._begin()
        for number in range(1, MOST_PASSES + 1):
            reached = self._join(source, self.urls, self.patience)
            if not reached:
                raise NoEngineAnswers(
                    f"no engine of {', '.join(self.urls)} could be given the weights, within "
                    f"{self.patience:.0f} s (limits.rollout_timeout), or before others had been paused for "
                    f"{self.limit:.0f} s (limits.sync_timeout); their logs say why"
                )
            fault = self._send(source, version, reached)
            if fault is None:
                self._end(reached, version, whole=number == 1)
                return
            if number == MOST_PASSES:
                raise fault

    def refit(self, source: ActorWeights, version: int, engines: Sequence[str]) -> None:
        """Send the version to some engines alone, which came back without it, while the others go on. Those that
        cannot be reached are left for another time. Raises what the source raises.
        """
        self._begin()
        reached = self._join(source, engines, 0.0)
        if reached:
            self._send(source, version, reached)

    def close(self) -> None:
        """Leave the engines to themselves."""
        if self._sender is not None:
            self._sender.close()
        self._sender, self._joined, self._version = None, (), None

    # --- a pass ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """No engine is blamed for another version, nor for another refit: whoever is named is tried."""
        self._paused = None
        self._blamed.clear()

    def _end(self, reached: Sequence[str], version: int, *, whole: bool) -> None:
        """`whole`: the first pass went well. A group that was joined in what was left of the time has its limits
        of that, which would be too short for a next version."""
        if not whole:
            self.close()
        missing = [url for url in self.urls if url not in reached]
        if missing and self.ranks.rank == 0:
            _log.warning("version %d has not reached %s", version, ", ".join(missing))

    def _send(self, source: ActorWeights, version: int, reached: Sequence[str]) -> WeightTransferError | None:
        """One pass over all tensors, to the group; what it broke off of, on every rank, if it did."""
        assert self._sender is not None
        seconds, began = self._seconds(), self.senses.clock()
        if self._paused is None:
            self._paused = began
        try:
            self._sender.publish(source, version, seconds)
        except WeightTransferError as error:
            self._broke_off(error, began, seconds)
            return error
        self._version = version
        self.urls = list(dict.fromkeys([*self.urls, *reached]))  # one that came to the run is one of them now
        if self.ranks.rank == 0:
            self.tell(reached, version)
        return None

    def _left(self) -> float:
        """Seconds for which engines may still be paused."""
        if self._paused is None:
            return self.limit
        return self.limit - (self.senses.clock() - self._paused)

    def _seconds(self) -> float:
        """For what is tried next, so that something else may follow it."""
        return self._left() * SHARE

    def _broke_off(self, error: WeightTransferError, began: float, seconds: float) -> None:
        """The group is no more; another one may do without those that failed. Raises the error where it would come
        again.
        """
        self.close()
        if not error.passing:
            raise error
        silent = self.senses.clock() - began >= seconds / 2  # there is no time to try those twice
        for engine in error.engines:
            self._blamed[engine] += MOST_BLAMED if silent else 1
        if self.ranks.rank == 0:
            _log.warning("%s; it is tried again with the engines that answer", error)

    # --- which engines -----------------------------------------------------------------------------------------

    def _join(self, source: ActorWeights, urls: Sequence[str], patience: float) -> tuple[str, ...]:
        """Those that will be sent to: the group there is, if it is still theirs, else a new one. Empty where none
        could be joined in time."""
        until = self.senses.clock() + patience
        again = False
        while True:
            chosen = self._chosen(urls, until, again=again)
            if not chosen.urls or chosen.joined or self._connect(source, chosen.urls):
                return chosen.urls
            again = True

    def _chosen(self, urls: Sequence[str], until: float, *, again: bool) -> ChosenEngines:
        """Rank 0's, on every rank. `again`: it was tried before, so that time may be over though some answer."""
        own = ChosenEngines(())
        if self.ranks.rank == 0:
            own = self._look(urls, until, again=again)
        return self.ranks.gathered(own)[0]

    def _look(self, urls: Sequence[str], until: float, *, again: bool) -> ChosenEngines:
        """Those that answer; where none does, it waits for one."""
        while self._left() > 0.0:
            late = self.senses.clock() >= until
            if again and late:
                break
            if again:
                self.senses.sleep(LOOK_AGAIN_SECONDS)  # what refused at once, as a busy port does, may pass
            answering = self._answering(urls)
            if answering:
                return ChosenEngines(tuple(answering), self._is_whole(answering))
            self._paused = None  # nobody is there to be
            if late:
                break
            again = True
        return ChosenEngines(())

    def _answering(self, urls: Sequence[str]) -> dict[str, str]:
        """What those that answer say of their weights. Those that have failed this version often are asked only
        where no other one answers."""
        sound = [url for url in urls if self._blamed[url] < MOST_BLAMED]
        return self._asked(sound) or self._asked([url for url in urls if url not in sound])

    def _asked(self, urls: Sequence[str]) -> dict[str, str]:
        if not urls:
            return {}
        with ThreadPoolExecutor(len(urls)) as pool:
            said = list(pool.map(self.senses.held, urls))
        return {url: held for url, held in zip(urls, said, strict=True) if held is not None}

    def _is_whole(self, answering: dict[str, str]) -> bool:
        """Whether the group is of these engines, and none of them was started again since it was sent to."""
        if self._sender is None or tuple(answering) != self._joined:
            return False
        return self._version is None or NEVER_TOLD not in answering.values()

    def _connect(self, source: ActorWeights, urls: tuple[str, ...]) -> bool:
        """A new group of these engines; False where one of them failed."""
        self.close()
        sender = self.make(urls)
        seconds, began = self._seconds(), self.senses.clock()
        try:
            sender.connect(source, seconds)
        except WeightTransferError as error:
            sender.close()
            self._broke_off(error, began, seconds)
            return False
        except BaseException:
            sender.close()
            raise
        self._sender, self._joined = sender, urls
        return True
