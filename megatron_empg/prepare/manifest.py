"""DIR/prepared.json: what a preparation brought and where it lies, for whoever starts a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_empg.prepare.disk import write_aside
from megatron_empg.prepare.errors import BrokenManifest, PrepareError
from megatron_empg.prepare.records import Checked

NAME = "prepared.json"
FORMAT = 1
DEEPSEARCH = "deepsearch"
ALFWORLD = "alfworld"
WEBSHOP = "webshop"
SCIENCEWORLD = "scienceworld"
PARTS: Mapping[str, tuple[str, ...]] = {
    DEEPSEARCH: ("model", "data", "corpus", "index"),
    ALFWORLD: ("model", "data", "games"),
    WEBSHOP: ("model", "data"),
    SCIENCEWORLD: ("model", "engine"),
}
"""By preparation, its parts as --only calls them."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PreparedFile(_Part):
    """One file, by its name below the folder."""

    path: str
    size: int
    sha256: str
    origin: str
    checked: Checked


class PreparedModel(_Part):
    """`path` is below the folder unless it is absolute; `files` are empty for a folder that was there before."""

    path: str
    origin: str
    files: list[PreparedFile] = Field(default_factory=list)


class PreparedQuestions(_Part):
    """A file of questions and its share."""

    dataset: str
    file: PreparedFile
    weight: float | None = None
    limit: int | None = None
    aliases: PreparedFile | None = None


class PreparedIndex(_Part):
    """`of_sha256`: the corpus that it was built over."""

    path: str
    size: int
    of_sha256: str


class PreparedGames(_Part):
    """ALFWorld's games with their manifest.json, whose sha256 is `manifest`.

    `counts`: games by split. `generated`: how many were asked for; None for published ones, whose archives have
    the sha256 `of`.
    """

    path: str
    manifest: str
    counts: dict[str, int]
    generated: int | None = None
    of: list[str] = Field(default_factory=list)


class PreparedCatalogue(_Part):
    """A generated catalogue of WebShop, of which nothing lies on the disk: it follows from these numbers."""

    products: int
    seed: int


class PreparedEngine(_Part):
    """What plays ScienceWorld on the machine that was prepared on."""

    package: str
    java: str


class PreparedFolder(_Part):
    """The whole of it; a part that is missing was not prepared yet.

    `files` are named after the settings that read them (WebShop), or after what they hold (ALFWorld's archives).
    """

    format: int = FORMAT
    preparation: str = DEEPSEARCH
    version: str = ""
    at: str = ""
    models: dict[str, PreparedModel] = Field(default_factory=dict)
    questions: dict[str, list[PreparedQuestions]] = Field(default_factory=dict)
    corpus: PreparedFile | None = None
    index: PreparedIndex | None = None
    files: dict[str, PreparedFile] = Field(default_factory=dict)
    games: PreparedGames | None = None
    catalogue: PreparedCatalogue | None = None
    engine: PreparedEngine | None = None

    def missing(self) -> list[str]:
        """The parts that are not there yet, as --only calls them."""
        generated = self.catalogue or (self.games is not None and self.games.generated)
        parts = {
            "model": self.models,
            "data": self.questions or self.files or generated,
            "corpus": self.corpus,
            "index": self.index,
            "games": self.games,
            "engine": self.engine,
        }
        return [name for name in PARTS[self.preparation] if not parts[name]]


def read_prepared(folder: Path, preparation: str = DEEPSEARCH) -> PreparedFolder | None:
    """What was prepared in a folder; None where nothing was.

    Raises PrepareError for a file that is broken (BrokenManifest), of another format, or of another preparation.
    """
    path = folder / NAME
    try:
        found = PreparedFolder.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrepareError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        faults = error.error_count()
        raise BrokenManifest(
            f"{path} is broken ({faults} faults): run slurm/prepare.sh for {folder} again"
        ) from None
    if found.format != FORMAT:
        raise PrepareError(
            f"{path} has format {found.format}, and this version of megatron_empg reads {FORMAT}: prepare another "
            "folder, or use the version that wrote it" + (f" ({found.version})" if found.version else "")
        )
    if found.preparation != preparation:
        raise PrepareError(
            f"{path} is of the preparation {found.preparation!r:.40}, not of {preparation!r}: give another folder"
        )
    return found


def write_prepared(folder: Path, prepared: PreparedFolder) -> None:
    """Replace DIR/prepared.json as a whole."""
    write_aside(folder / NAME, prepared.model_dump_json(indent=2) + "\n")
