"""ALFWorld, prepared: its published games, or games that are made here in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megatron_empg.prepare.alfworld_games import FACTS, GAME, GeneratedGames, PublishedGames
from megatron_empg.prepare.costs import Cost
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.fetching import FolderFetcher
from megatron_empg.prepare.file_set import bytes_left_of_all, fetched
from megatron_empg.prepare.manifest import ALFWORLD
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparation import Preparation, PreparationParts
from megatron_empg.prepare.sources import Alternative, AnySources, Places, SourcesPart
from megatron_empg.prepare.work import InitialFolder, PreparationRun

FOLDER = "archives"


class Archive(SourcesPart):
    """A zip archive. `holds`: the files in it that are read."""

    holds: Literal["traj_data.json", "game.tw-pddl"]
    places: Places = Field(alias="from")


class GamesCost(SourcesPart):
    """What the unpacked games take, for the estimate."""

    about_bytes: Annotated[int, Field(ge=0)] = 0
    hours: Annotated[float, Field(ge=0)] = 0.0


class AlfWorldSources(AnySources):
    """Archives of the files that every game consists of."""

    archives: list[Archive]
    games: GamesCost = GamesCost()

    def require_sound(self, path: Path) -> None:
        if sorted(archive.holds for archive in self.archives) != sorted((FACTS, GAME)):
            raise PrepareError(f"{path}: archives must be one that holds {FACTS} and one that holds {GAME}")
        one, other = ({place.called() for place in archive.places} for archive in self.archives)
        if one & other:
            raise PrepareError(
                f"{path}: both archives would be called {min(one & other)}: give one another `name`"
            )


class AlfWorldPreparation(Preparation):
    """What agents that keep house are trained on."""

    name: ClassVar[str] = ALFWORLD
    estimate: ClassVar[str] = "what the games take is an estimate"

    def __init__(self, sources: AlfWorldSources) -> None:
        self._sources = sources

    @property
    def default_model(self) -> str:
        return self._sources.model

    def parts(self, options: PreparationOptions) -> PreparationParts:
        if options.generated is not None:
            return PreparationParts((), (GeneratedGames(options.generated, options.python),))
        places: dict[str, list[Alternative]] = {}
        for archive in self._sources.archives:
            places[archive.holds] = archive.places
        about = self._sources.games
        return PreparationParts((ArchivesPart(places),), (PublishedGames(about.about_bytes, about.hours),))


@dataclass(frozen=True)
class ArchivesPart:
    """The archives, which stay: a game that is damaged later is restored from them."""

    wanted: Mapping[str, list[Alternative]]
    name: ClassVar[str] = "data"

    def require(self) -> None:
        """Nothing."""

    def cost(self, before: InitialFolder) -> Cost:
        left = bytes_left_of_all(self.wanted, FOLDER, before)
        return Cost(self.name, left, left)

    def fetch(self, work: PreparationRun, fetching: FolderFetcher) -> None:
        work.keep(files=fetched(self.wanted, FOLDER, work, fetching))
