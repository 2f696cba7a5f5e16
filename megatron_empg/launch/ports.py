"""Which port each process listens on: counted from one base port, or free ones of this machine."""

from __future__ import annotations

from dataclasses import dataclass

SERVICES = (2, 5, 6, 7)
"""Of an environment's services, counted from the base port."""
FIRST_ENGINE = 8


@dataclass(frozen=True)
class Ports:
    """The ports of a run from `base` on: trainer, driver, services, preflight, weights, then one for each engine.

    Example: Ports(10000).engine(2) is 10010.
    """

    base: int

    @property
    def trainer(self) -> int:
        """Where the trainer's ranks meet."""
        return self.base

    @property
    def driver(self) -> int:
        """The rollout service's."""
        return self.base + 1

    @property
    def preflight(self) -> int:
        """Where preflight's ranks meet."""
        return self.base + 3

    @property
    def weights(self) -> int:
        """Where the trainer's rank 0 and the engines meet."""
        return self.base + 4

    def service(self, index: int) -> int:
        """Of the environment's service number `index`. Raises ValueError when there are more than have ports."""
        if index >= len(SERVICES):
            raise ValueError(f"the environment asks for service number {index + 1}; a job starts {len(SERVICES)}")
        return self.base + SERVICES[index]

    def engine(self, index: int) -> int:
        """Of engine number `index` over all nodes."""
        return self.base + FIRST_ENGINE + index
