"""Which port each process listens on: counted from one base port, or free ones of this machine."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass

SERVICES = (2, 5, 6, 7)
"""Of an environment's services, counted from the base port."""
FIRST_ENGINE = 8
LOWEST_FREE, FREE = 20_000, 12_000
"""Free ports are looked for in so many from the lowest on: below those that the kernel gives to outgoing
connections (32768 and up), one of which could have it by the time that a server wants to listen there."""
TRIES = 100


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
        """The port of the environment's service number `index`. Raises ValueError when no port is left for it."""
        if index >= len(SERVICES):
            raise ValueError(f"the environment asks for service number {index + 1}; a job starts {len(SERVICES)}")
        return self.base + SERVICES[index]

    def engine(self, index: int) -> int:
        """The port of engine number `index` over all nodes."""
        return self.base + FIRST_ENGINE + index

    def beside_preflight(self, engines: int) -> str:
        """Those of a run with so many engines that preflight does not take itself.

        Example: Ports(10000).beside_preflight(2) is "10000-10002,10004-10009".
        """
        last = self.engine(engines) - 1
        return f"{self.base}-{self.preflight - 1},{self.preflight + 1}-{last}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port of that interface that nobody has now. Raises OSError for an interface that is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(TRIES - 1):
        try:
            return _bound_port(family, host)
        except OSError:
            continue
    return _bound_port(family, host)


def _bound_port(family: int, host: str) -> int:
    port = LOWEST_FREE + secrets.randbelow(FREE)
    with socket.socket(family) as probe:
        probe.bind((host, port))
    return port
