"""The engine's own solutions."""

from __future__ import annotations

from megatron_empg.environments.scienceworld.engine import Engine
from megatron_empg.environments.scienceworld.errors import ScienceWorldFailed
from megatron_empg.environments.scienceworld.java_installation import JavaInstallation
from megatron_empg.environments.scienceworld.variations import Variation

PATIENCE = 1200.0
"""Seconds that a solution may take: the engine plays some tasks through many times."""
HEAP_MIB = 1024
MOST_KEPT = 4_000
"""Solutions, and walkthroughs of them: more than the 3,592 variations of the engine's train part (`splits.py`)."""


class GoldPaths:
    """Each is found once, in a process of their own, which has more memory than an episode needs."""

    def __init__(self, needed: JavaInstallation, simplifications: str) -> None:
        self.engine = Engine(needed, PATIENCE, HEAP_MIB)
        self._simplifications = simplifications
        self._known: dict[Variation, tuple[str, ...]] = {}

    def path(self, variation: Variation) -> tuple[str, ...]:
        """Commands that solve it. Raises ScienceWorldFailed where the engine finds none."""
        if variation not in self._known:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[variation] = self._found(variation)
        return self._known[variation]

    def _found(self, variation: Variation) -> tuple[str, ...]:
        simulation = self.engine.load(variation, self._simplifications, with_gold=True)
        path = tuple(self.engine.gold_path(simulation))
        if not path:
            raise ScienceWorldFailed(f"ScienceWorld's engine knows no solution of {variation.id}")
        return path
