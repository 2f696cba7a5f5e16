"""What trained a policy: an algorithm, a modulation and a regularizer."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_empg.recipe import Recipe

NOTHING = "none"
WRITTEN = {
    "gigpo": "GiGPO",
    "reinforce_pp": "REINFORCE++",
    "entropy": "entropy bonus",
}
"""How a name is written that is not merely in capitals."""
ORDER = ("grpo", "dapo", "rloo", "reinforce_pp", "gspo", "gigpo", "sampo", "igpo")
"""Of the table's lines: a plain algorithm before what was put on it, and these before others."""


@dataclass(frozen=True)
class Method:
    """A method by the names of a recipe. `algorithm` is None if no known run of ours trained the policy."""

    algorithm: str | None
    modulation: str = NOTHING
    regularizer: str = NOTHING

    @classmethod
    def of(cls, recipe: Recipe) -> Method:
        """What the recipe trains with."""
        chosen = recipe.algorithm
        return cls(chosen.name, chosen.modulation.name, chosen.regularizer.name)

    @property
    def plain(self) -> Method:
        """The algorithm with nothing on it."""
        return Method(self.algorithm)

    @property
    def is_plain(self) -> bool:
        return self == self.plain

    @property
    def label(self) -> str:
        """``GRPO + EMPG``."""
        if self.algorithm is None:
            return "as given"
        parts = [written(self.algorithm)]
        for name in (self.modulation, self.regularizer):
            if name != NOTHING:
                parts.append(written(name))
        return " + ".join(parts)

    @property
    def rank(self) -> tuple[int, str, int, str, str]:
        """Its place among others."""
        name = str(self.algorithm)
        place = len(ORDER)
        if name in ORDER:
            place = ORDER.index(name)
        return place, name, not self.is_plain, self.modulation, self.regularizer


def written(name: str) -> str:
    """A name of a recipe as papers write it."""
    return WRITTEN.get(name, name.upper())
