"""How much of what a search finds is shown."""

from __future__ import annotations

from dataclasses import dataclass

MOST_RESULTS = 100
LEAST_CHARACTERS = 40
"""Of a snippet or an observation: fewer hold no more than the mark that something is cut."""
PAGE_CHARACTERS = 4000
"""Of an observation, unless the settings say otherwise."""


@dataclass(frozen=True)
class ResultLimits:
    """Results of a search, and characters of each result's snippet."""

    top_k: int = 3
    snippet_characters: int = 800

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MOST_RESULTS:
            raise ValueError(f"top_k is {self.top_k}; it lies between 1 and {MOST_RESULTS}")
        if self.snippet_characters < LEAST_CHARACTERS:
            raise ValueError(
                f"snippet_characters is {self.snippet_characters}; it must be {LEAST_CHARACTERS} or more"
            )
