"""Which engines may generate: a state machine without I/O, with an exit from every state.

HEALTHY engines take episodes. DEAD ones failed, and are asked now and then whether they answer again. STALE ones
answer but hold other weights than the policy's: they were started again, or a weight transfer missed them. What
an engine says of its weights is the identity of its process: only whole new weights bring it a version, which ends
with the process.

    HEALTHY --- does not answer ----------------------> DEAD
    HEALTHY --- holds other weights, missed new ones -> STALE
    DEAD    --- answers, with the policy's weights ---> HEALTHY
    DEAD    --- answers, with others -----------------> STALE
    STALE   --- gets the policy's weights ------------> HEALTHY
    STALE   --- does not answer ----------------------> DEAD
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from megatron_empg.common.errors import EmpgError


class EngineState(Enum):
    HEALTHY = "healthy"
    DEAD = "dead"
    STALE = "stale"


@dataclass
class EngineRecord:
    """`version`: of the weights it holds, None where nobody has said. `load`: episodes it is busy with;
    `failures`: times it was declared dead; `refits`: times it got weights after it had been dead or stale.
    """

    state: EngineState
    version: int | None
    load: int = 0
    failures: int = 0
    refits: int = 0


class NoHealthyEngine(EmpgError, RuntimeError):
    """No engine may generate at the moment."""


class Fleet:
    """The engines at `urls`, which hold the weights of `version`.

    `told`: somebody says which engines hold which weights (`refitted`), as a run's trainer does. Until then none
    may generate, and one that failed may come back. Without it all may generate from the beginning, whatever they
    hold.
    """

    def __init__(self, urls: Iterable[str], version: int | None = None, *, told: bool = False) -> None:
        self.version, self.told = version, told
        first = EngineState.STALE if told else EngineState.HEALTHY
        self.engines = {url: EngineRecord(first, version) for url in urls}
        self.on_change: Callable[[], None] = _nothing
        """Called whenever an engine's state has changed."""
        if not self.engines:
            raise ValueError("a fleet needs at least one engine URL")

    def healthy(self) -> list[str]:
        """Engines that may generate, in the order they were given."""
        return self._in(EngineState.HEALTHY)

    def dead(self) -> list[str]:
        """Those that did not answer when they were asked last."""
        return self._in(EngineState.DEAD)

    def stale(self) -> list[str]:
        """Those that wait for the policy's weights."""
        return self._in(EngineState.STALE)

    def answering(self) -> list[str]:
        """Engines that weights should go to: all but the dead."""
        return [url for url, engine in self.engines.items() if engine.state is not EngineState.DEAD]

    def may_generate(self, url: str) -> bool:
        """Whether it is HEALTHY."""
        return self.engines[url].state is EngineState.HEALTHY

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
            engine.failures += 1
            self._change(engine, EngineState.DEAD)

    def add(self, url: str) -> None:
        """An engine comes to a run; it is STALE until the trainer has sent it weights. Nothing for one of them."""
        if url not in self.engines:
            self.engines[url] = EngineRecord(EngineState.STALE, None)
            self.on_change()

    def came_back(self, url: str, version: int | None = None) -> None:
        """A dead engine answers again, and says that it holds the weights of `version`; None: it does not say."""
        engine = self.engines[url]
        if engine.state is EngineState.DEAD:
            engine.version = version
            fits = version is not None and self.covers(version)
            self._change(engine, EngineState.HEALTHY if fits else EngineState.STALE)

    def declare_stale(self, url: str, version: int | None) -> None:
        """A healthy engine says that it holds the weights of `version`, which are not the policy's."""
        engine = self.engines[url]
        if engine.state is EngineState.HEALTHY:
            engine.version = version
            self._change(engine, EngineState.STALE)

    def covers(self, version: int) -> bool:
        """Whether weights of this version are the policy's. They may be newer than the fleet knows of yet."""
        if self.version is None:
            return not self.told  # who is to be told knows of none yet
        return version >= self.version

    def refitted(self, urls: Iterable[str], version: int) -> None:
        """These hold the weights of `version`; engines that were healthy, are not among them and hold others
        become STALE. One that was not known joins them, as after a restart of who keeps the fleet.

        Raises ValueError for a version older than the fleet's.
        """
        if self.version is not None and version < self.version:
            raise ValueError(f"weights of version {version} are older than the fleet's, {self.version}")
        reached = set(urls)
        first = self.version is None
        self.version = version
        for url in reached:
            self.add(url)
        for url, engine in self.engines.items():
            if url in reached:
                engine.version = version
                engine.refits += int(not first and engine.state is not EngineState.HEALTHY)
                engine.state = EngineState.HEALTHY
            elif engine.state is EngineState.HEALTHY and engine.version != version:
                engine.state = EngineState.STALE
        self.on_change()

    def metrics(self) -> dict[str, float]:
        """``rollout/engine…``: how many there are in each state, and what befell them so far."""
        records = self.engines.values()
        return {
            "rollout/engines_healthy": len(self.healthy()),
            "rollout/engines_stale": len(self.stale()),
            "rollout/engines_dead": len(self.dead()),
            "rollout/engine_failures": sum(engine.failures for engine in records),
            "rollout/engine_refits": sum(engine.refits for engine in records),
        }

    def _in(self, state: EngineState) -> list[str]:
        return [url for url, engine in self.engines.items() if engine.state is state]

    def _change(self, engine: EngineRecord, state: EngineState) -> None:
        engine.state = state
        self.on_change()


def _nothing() -> None:
    """Nobody wants to know."""
