"""WebShop, prepared: its files of products, or the numbers that a generated catalogue follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ValidationError

from megatron_empg.common.errors import without_prefix
from megatron_empg.environments.webshop.settings import WebShopSettings
from megatron_empg.prepare.costs import Cost
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.fetching import FolderFetcher
from megatron_empg.prepare.file_set import bytes_left_of_all, fetched
from megatron_empg.prepare.manifest import WEBSHOP, PreparedCatalogue
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparation import Preparation, PreparationParts
from megatron_empg.prepare.sources import Alternative, AnySources, Places
from megatron_empg.prepare.work import InitialFolder, PreparationRun

Setting = Literal["products", "attributes", "instructions"]
FOLDER = "products"
GENERATED = "WebShop engine, generated catalogue"


class WebShopSources(AnySources):
    """`files` by the setting of the environment that reads them; without instructions goals are synthetic."""

    files: dict[Setting, Places]

    def require_sound(self, path: Path) -> None:
        if "products" not in self.files or len(self.files) == 1:
            raise PrepareError(f"{path}: files must have products, and attributes or instructions or both")
        held: dict[str, str] = {}
        for setting, places in self.files.items():
            for alternative in places:
                name = alternative.called()
                if held.setdefault(name, setting) != setting:
                    raise PrepareError(
                        f"{path}: {held[name]} and {setting} would both be called {name}: give one another `name`"
                    )


class WebShopPreparation(Preparation):
    """What agents that shop are trained on."""

    name: ClassVar[str] = WEBSHOP

    def __init__(self, sources: WebShopSources) -> None:
        self._sources = sources

    @property
    def default_model(self) -> str:
        return self._sources.model

    def parts(self, options: PreparationOptions) -> PreparationParts:
        if options.generated is not None:
            return PreparationParts((), (CataloguePart(options.generated),))
        return PreparationParts((FilesPart(self._sources.files),))


@dataclass(frozen=True)
class FilesPart:
    """WebShop's own files."""

    wanted: Mapping[Setting, list[Alternative]]
    name: ClassVar[str] = "data"

    def require(self) -> None:
        """Nothing."""

    def cost(self, before: InitialFolder) -> Cost:
        left = bytes_left_of_all(self.wanted, FOLDER, before)
        return Cost(self.name, left, left)

    def fetch(self, work: PreparationRun, fetching: FolderFetcher) -> None:
        work.keep(files=fetched(self.wanted, FOLDER, work, fetching), catalogue=None)


@dataclass(frozen=True)
class CataloguePart:
    """A catalogue of so many products, which every process of a run makes for itself."""

    products: int
    name: ClassVar[str] = "data"

    def require(self) -> None:
        try:
            WebShopSettings(generated_products=self.products)
        except ValidationError as error:
            raise PrepareError(
                f"--generated {self.products}: {without_prefix(error.errors()[0]['msg'])}"
            ) from None

    def cost(self, before: InitialFolder) -> None:
        """Nothing: it takes no room on the disk."""

    def make(self, work: PreparationRun) -> None:
        catalogue = PreparedCatalogue(products=self.products, seed=WebShopSettings().generated_seed)
        work.keep(catalogue=catalogue, files={})
        work.say(f"{GENERATED}: {catalogue.products} products of seed {catalogue.seed}; no score of WebShop's")
