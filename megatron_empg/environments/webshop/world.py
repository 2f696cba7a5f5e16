"""A visit to a catalogue's shop as a world of text commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_empg.environments.text_worlds.world import Scene
from megatron_empg.environments.webshop.catalogue import Catalogue
from megatron_empg.environments.webshop.shop import PageOptions, Visit
from megatron_empg.environments.webshop.titles import Titles


@dataclass(frozen=True)
class Rewards:
    """What a score earns: `success` for a full one and nothing for less, or its share of `success`."""

    success: float = 10.0
    partial: bool = False

    def of(self, score: float) -> float:
        """The reward of a purchase."""
        if self.partial:
            return self.success * score
        if score != 1.0:
            return 0.0
        return self.success


class LocalWorld:
    """A `World`. The catalogue is loaded at the beginning unless somebody has loaded it before."""

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        goal: int,
        titles: Titles,
        rewards: Rewards,
        *,
        measured_as: str,
        shown: PageOptions | None = None,
    ) -> None:
        """`goal`: its number in the catalogue; `measured_as`: what results are to be called."""
        self._catalogue = catalogue
        self._goal = goal
        self._titles = titles
        self._rewards = rewards
        self._measured_as = measured_as
        self._shown = shown
        self._visit: Visit | None = None

    def begin(self) -> Scene:
        """The search page. Raises CatalogueError, OSError."""
        catalogue = self._catalogue()
        catalogue.build_search()  # no step may be long
        goal = catalogue.goals[self._goal]
        self._visit = Visit(catalogue, goal, self._titles, self._shown)
        return self._scene(self._visit)

    def act(self, command: str) -> Scene:
        """The page that a command leads to."""
        visit = self._visit
        if visit is None:
            raise RuntimeError("the visit has not begun or was closed")
        visit.act(command)
        return self._scene(visit)

    def close(self) -> None:
        """Let go of the visit."""
        self._visit = None

    def _scene(self, visit: Visit) -> Scene:
        score = visit.score
        called: dict[str, float | str | bool] = {"measured_as": self._measured_as}
        if score is None:
            return Scene(visit.page.text, visit.page.choices, anchor=visit.place.state, info=called)
        return Scene(
            visit.page.text,
            done=True,
            reward=self._rewards.of(score.value),
            success=score.value == 1.0,
            anchor=visit.place.state,
            info={**score.info, **called},
        )
