"""Which engines may generate: a state machine without I/O.

HEALTHY engines take episodes. DEAD ones failed. STALE ones answer but hold other weights than the
policy's: they came back after a failure, or a weight transfer missed them. Only new weights make a
STALE engine HEALTHY.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from megatron_empg.common.errors import EmpgError


class EngineState(Enum):
    HEALTHY = "healthy"
    DEAD = "dead"
    STALE = "stale"


@dataclass
class EngineRecord:
    """`load`: episodes it is busy with; `failures`: times it was declared dead."""

    state: EngineState
    version: int
    load: int = 0
    failures: int = 0


class NoHealthyEngine(EmpgError, RuntimeError):
    """No engine may generate at the moment."""


class Fleet:
    """All engines start HEALTHY with the weights of `version`."""

    def __init__(self, urls: Iterable[str], version: int = 0) -> None:
        self.version = version
        self.engines = {url: EngineRecord(EngineState.HEALTHY, version) for url in urls}
        if not self.engines:
            raise ValueError("a fleet needs at least one engine URL")

    def healthy(self) -> list[str]:
        """Engines that may generate, in the order they were given."""
        return [url for url, engine in self.engines.items() if engine.state is EngineState.HEALTHY]

    def answering(self) -> list[str]:
        """Engines that weights should go to: all but the dead."""
        return [url for url, engine in self.engines.items() if engine.state is not EngineState.DEAD]

    def assign(self, avoid: Iterable[str] = ()) -> str:
        """The least loaded healthy engine, counted as busy until `release`. Raises NoHealthyEngine.

        One of those to `avoid` is taken only when there is no other: they failed the caller before.
        """
        healthy, avoided = self.healthy(), set(avoid)
        candidates = [url for url in healthy if url not in avoided] or healthy
        if not candidates:
            states = ", ".join(f"{url} {engine.state.value}" for url, engine in self.engines.items())
            raise NoHealthyEngine(f"no healthy engine: {states}")
        url = min(candidates, key=lambda candidate: self.engines[candidate].load)
        self.engines[url].load += 1
        return url

    def release(self, url: str) -> None:
        """An episode on that engine has ended, however it did."""
        self.engines[url].load -= 1

    def declare_dead(self, url: str) -> None:
        """It does not answer any more."""
        engine = self.engines[url]
        if engine.state is not EngineState.DEAD:
            engine.state = EngineState.DEAD
            engine.failures += 1

    def came_back(self, url: str) -> None:
        """A dead engine answers again; what it holds is anybody's guess until it is refitted."""
        if self.engines[url].state is EngineState.DEAD:
            self.engines[url].state = EngineState.STALE

    def refitted(self, urls: Iterable[str], version: int) -> None:
        """These hold the weights of `version`; engines that were healthy and are not among them become STALE.

        Raises ValueError for a version older than the fleet's.
        """
        if version < self.version:
            raise ValueError(f"weights of version {version} are older than the fleet's, {self.version}")
        reached = set(urls)
        self.version = version
        for url, engine in self.engines.items():
            if url in reached:
                engine.state = EngineState.HEALTHY
                engine.version = version
            elif engine.state is EngineState.HEALTHY:
                engine.state = EngineState.STALE
