"""What a prepared folder means to each environment: which of its settings name what lies there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from megatron_empg.prepare.manifest import (
    ALFWORLD,
    DEEPSEARCH,
    SCIENCEWORLD,
    WEBSHOP,
    PreparedFile,
    PreparedFolder,
    PreparedQuestions,
)

if TYPE_CHECKING:
    from megatron_empg.environments.alfworld.manifest import GamesManifest

Settings = Mapping[str, Any]
_OF_PRODUCT_FILES = ("attributes", "instructions", "goals", "first_products")
"""WebShop's settings that go with files of products."""


class PreparedData(Protocol):
    """The prepared data of one environment. `preparation` is what slurm/prepare.sh calls it.

    `needs`: its parts that a job cannot do without, beside the model. `own_data`: settings that name data; a job
    whose user gives one needs no preparation. `what`: what is fetched. `otherwise`: how a job does without it.
    `no_miniature`: what to say where there is none; empty where there is one.
    """

    preparation: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    own_data: ClassVar[tuple[str, ...]]
    what: ClassVar[str]
    otherwise: ClassVar[str]
    no_miniature: ClassVar[str]

    def has_own(self, settings: Settings) -> bool:
        """Whether the recipe itself names data."""
        ...

    def on_this_machine(self) -> bool:
        """Whether a variable names data, as the environment understands it."""
        ...

    def settings(self, prepared: PreparedFolder, root: Path, settings: Settings) -> dict[str, Any]:
        """What the prepared folder at `root` is to the environment; null takes a setting of the recipe away."""
        ...

    def files(self, prepared: PreparedFolder) -> Iterator[PreparedFile]:
        """Those that must be as they were prepared."""
        ...

    def gone(self, prepared: PreparedFolder, root: Path) -> str:
        """What was made there and is gone; empty where nothing is."""
        ...

    def told(self, settings: Settings) -> list[str]:
        """What a user must know of the data, as notes."""
        ...

    def counts(self, settings: Settings) -> dict[str, int]:
        """Tasks by split, where they are known at once; empty where they are not."""
        ...


class DeepSearchData:
    """Published questions, and the index that is searched."""

    preparation: ClassVar[str] = DEEPSEARCH
    needs: ClassVar[tuple[str, ...]] = ("data", "corpus", "index")
    own_data: ClassVar[tuple[str, ...]] = ("corpus", "questions", "index")
    what: ClassVar[str] = "questions, corpus and model"
    otherwise: ClassVar[str] = (
        "give data=CORPUS.jsonl of your own, or train on the miniature corpus by EMPG_MINIATURE=1"
    )
    no_miniature: ClassVar[str] = ""

    def has_own(self, settings: Settings) -> bool:
        """That the recipe names the miniature is not enough."""
        if settings.get("questions") or settings.get("index"):
            return True
        corpus = settings.get("corpus")
        return corpus is not None and not _is_miniature(corpus)

    def on_this_machine(self) -> bool:
        return False

    def settings(self, prepared: PreparedFolder, root: Path, settings: Settings) -> dict[str, Any]:
        assert prepared.index is not None, "a job needs it"
        found: dict[str, Any] = {
            "questions": {
                split: [_question_setting(entry, root) for entry in entries]
                for split, entries in prepared.questions.items()
            },
            "index": str(root / prepared.index.path),
        }
        if settings.get("corpus") is not None:
            found["corpus"] = None  # the miniature's: another one was not replaced
        return found

    def files(self, prepared: PreparedFolder) -> Iterator[PreparedFile]:
        for entries in prepared.questions.values():
            for entry in entries:
                yield entry.file
                if entry.aliases is not None:
                    yield entry.aliases

    def gone(self, prepared: PreparedFolder, root: Path) -> str:
        assert prepared.index is not None, "a job needs it"
        index = root / prepared.index.path
        return "" if index.is_dir() else f"the index {index}"

    def told(self, settings: Settings) -> list[str]:
        from megatron_empg.environments.deep_search.settings import DEFAULT_CORPUS

        questions = settings.get("questions")
        if questions:
            splits = ", ".join(f"{split} {len(files)}" for split, files in questions.items())
            over = settings.get("index", "a search of its own")
            return [f"trains on published questions (files: {splits}) over {over}"]
        corpus = settings.get("corpus", DEFAULT_CORPUS)
        if _is_miniature(corpus):
            return [f"trains on the miniature corpus ({corpus}); data=CORPUS.jsonl gives another"]
        return [f"trains on questions made of {corpus}"]

    def counts(self, settings: Settings) -> dict[str, int]:
        return {}


class AlfWorldData:
    """A folder of games with its manifest.json."""

    preparation: ClassVar[str] = ALFWORLD
    needs: ClassVar[tuple[str, ...]] = ("games",)
    own_data: ClassVar[tuple[str, ...]] = ("data",)
    what: ClassVar[str] = "games and model"
    otherwise: ClassVar[str] = (
        "give environment.settings.data=DIR or ALFWORLD_DATA=DIR with games and their manifest.json, or have "
        "games made in the place of the published ones (--generated 360)"
    )
    no_miniature: ClassVar[str] = (
        "alfworld has none; have a few games made by `bash slurm/prepare.sh alfworld data/alfworld --generated 36 "
        "--only games`, and leave EMPG_MINIATURE out"
    )

    def has_own(self, settings: Settings) -> bool:
        return settings.get("data") is not None

    def on_this_machine(self) -> bool:
        from megatron_empg.environments.alfworld.settings import DATA_VARIABLE

        return bool(os.environ.get(DATA_VARIABLE, "").strip())

    def settings(self, prepared: PreparedFolder, root: Path, settings: Settings) -> dict[str, Any]:
        assert prepared.games is not None, "a job needs them"
        return {"data": str(root / prepared.games.path)}

    def files(self, prepared: PreparedFolder) -> Iterator[PreparedFile]:
        """None: archives may be removed once they are unpacked."""
        yield from ()

    def gone(self, prepared: PreparedFolder, root: Path) -> str:
        from megatron_empg.environments.settings import MANIFEST

        assert prepared.games is not None, "a job needs them"
        manifest = root / prepared.games.path / MANIFEST
        return "" if manifest.is_file() else str(manifest)

    def told(self, settings: Settings) -> list[str]:
        given, variable = _alfworld_data(settings)
        manifest = _alfworld_manifest(settings)
        if manifest is None:
            return []  # the environment itself says what is wrong
        counts = ", ".join(f"{split} {len(games)}" for split, games in manifest.games.items())
        notes = [f"trains on {manifest.name} ({counts}) of {given}"]
        if variable is not None and variable != given:
            notes.append(f"ALFWORLD_DATA={variable} is not used")
        return notes

    def counts(self, settings: Settings) -> dict[str, int]:
        manifest = _alfworld_manifest(settings)
        if manifest is None:
            return {}
        return {str(split): len(games) for split, games in manifest.games.items()}


class WebShopData:
    """WebShop's files, or a generated catalogue."""

    preparation: ClassVar[str] = WEBSHOP
    needs: ClassVar[tuple[str, ...]] = ("data",)
    own_data: ClassVar[tuple[str, ...]] = ("products", "server", "generated_products")
    what: ClassVar[str] = "products and model"
    otherwise: ClassVar[str] = (
        "give environment.settings.products=FILE with attributes or instructions, or a server, or train on a "
        "generated catalogue by EMPG_MINIATURE=1"
    )
    no_miniature: ClassVar[str] = ""

    def has_own(self, settings: Settings) -> bool:
        return any(settings.get(name) is not None for name in self.own_data)

    def on_this_machine(self) -> bool:
        return False

    def settings(self, prepared: PreparedFolder, root: Path, settings: Settings) -> dict[str, Any]:
        catalogue = prepared.catalogue
        if catalogue is None:
            return {name: str(root / file.path) for name, file in prepared.files.items()}
        found: dict[str, Any] = {"generated_products": catalogue.products, "generated_seed": catalogue.seed}
        for name in _OF_PRODUCT_FILES:
            if settings.get(name) is not None:
                found[name] = None  # said of files, which are not there
        return found

    def files(self, prepared: PreparedFolder) -> Iterator[PreparedFile]:
        yield from prepared.files.values()

    def gone(self, prepared: PreparedFolder, root: Path) -> str:
        return ""

    def told(self, settings: Settings) -> list[str]:
        from megatron_empg.environments.settings import read_settings
        from megatron_empg.environments.webshop.settings import WebShopSettings

        try:
            found = read_settings(WebShopSettings, settings, "webshop")
        except ValueError:
            return []  # the environment itself says what is wrong
        assert isinstance(found, WebShopSettings)
        return [f"what it is measured by: {found.measured_as}"]

    def counts(self, settings: Settings) -> dict[str, int]:
        return {}


class ScienceWorldData:
    """Nothing but a model: the tasks are in the package."""

    preparation: ClassVar[str] = SCIENCEWORLD
    needs: ClassVar[tuple[str, ...]] = ()
    own_data: ClassVar[tuple[str, ...]] = ()
    what: ClassVar[str] = "the model"
    otherwise: ClassVar[str] = "or name a model's folder by EMPG_MODEL"
    no_miniature: ClassVar[str] = ""

    def has_own(self, settings: Settings) -> bool:
        return False

    def on_this_machine(self) -> bool:
        return False

    def settings(self, prepared: PreparedFolder, root: Path, settings: Settings) -> dict[str, Any]:
        return {}

    def files(self, prepared: PreparedFolder) -> Iterator[PreparedFile]:
        yield from ()

    def gone(self, prepared: PreparedFolder, root: Path) -> str:
        return ""

    def told(self, settings: Settings) -> list[str]:
        return []

    def counts(self, settings: Settings) -> dict[str, int]:
        return {}


def _alfworld_data(settings: Settings) -> tuple[Path | None, Path | None]:
    """The folder of games, and what the machine's variable names."""
    from megatron_empg.environments.alfworld.settings import AlfWorldSettings

    variable = AlfWorldSettings().data
    said = settings.get("data")
    return (Path(said) if said else variable), variable


def _alfworld_manifest(settings: Settings) -> GamesManifest | None:
    from megatron_empg.environments.alfworld.manifest import manifest_if_readable

    folder, _ = _alfworld_data(settings)
    return None if folder is None else manifest_if_readable(folder)


def _is_miniature(corpus: object) -> bool:
    from megatron_empg.environments.deep_search.settings import DEFAULT_CORPUS

    return Path(str(corpus)).resolve() == Path(DEFAULT_CORPUS).resolve()


def _question_setting(entry: PreparedQuestions, root: Path) -> dict[str, Any]:
    """An item of `environment.settings.questions`; what is not said is left out."""
    found: dict[str, Any] = {"dataset": entry.dataset, "path": str(root / entry.file.path)}
    if entry.weight is not None:
        found["weight"] = entry.weight
    if entry.limit is not None:
        found["limit"] = entry.limit
    if entry.aliases is not None:
        found["aliases"] = str(root / entry.aliases.path)
    return found
