"""What a preparation is: a model, and parts that are fetched or made here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from megatron_empg.prepare.costs import Cost
from megatron_empg.prepare.fetching import FolderFetcher
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.work import InitialFolder, PreparationRun


class PreparationPart(Protocol):
    """What --only calls `name`."""

    @property
    def name(self) -> str: ...

    def require(self) -> None:
        """What this machine must have for it, looked at before anything is fetched. Raises PrepareError."""

    def cost(self, before: InitialFolder) -> Cost | None:
        """What is not here yet, told without asking a server; None where there is nothing to say."""
        ...


class FetchedPart(PreparationPart, Protocol):
    """Comes over the network, and takes up where an earlier run ended."""

    def fetch(self, work: PreparationRun, fetching: FolderFetcher) -> None:
        """Fetch it, or check what is here, and note it. Raises PrepareError."""


class MadePart(PreparationPart, Protocol):
    """Made on this machine of what was fetched, or of nothing."""

    def make(self, work: PreparationRun) -> None:
        """Make it, or check what is here, and note it. Raises PrepareError."""


@dataclass(frozen=True)
class PreparationParts:
    """All parts in the order of the work: `fetched` ones, small before large, then `made` ones."""

    fetched: tuple[FetchedPart, ...]
    made: tuple[MadePart, ...] = ()

    def all(self) -> tuple[PreparationPart, ...]:
        return (*self.fetched, *self.made)


class Preparation(ABC):
    """A kind of folder. `name`: what the command line and prepared.json call it."""

    name: ClassVar[str]
    estimate: ClassVar[str] = ""
    """What is said of figures that are no more than estimates."""

    @property
    @abstractmethod
    def default_model(self) -> str:
        """The model of the sources."""

    @abstractmethod
    def parts(self, options: PreparationOptions) -> PreparationParts:
        """All parts but the model, which every preparation has. Raises PrepareError for options that cannot be."""

    def model_of(self, options: PreparationOptions) -> str:
        """The model that is wanted."""
        if options.model is None:
            return self.default_model
        return options.model
