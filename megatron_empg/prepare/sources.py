"""The sources file of a preparation: what is fetched, from where, and by what it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_empg.common.values import faults_of
from megatron_empg.environments.deep_search.data.published_formats import Dataset
from megatron_empg.prepare.checksums import Checksum
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.places import Place, file_name, read_place, safe_name

FOLDER = Path(__file__).resolve().parent
SHIPPED = FOLDER / "deepsearch_sources.yaml"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SourcesPart(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Alternative(SourcesPart):
    """One place of a file. `name`: what it is called here, where its place does not say it."""

    place: str
    bytes: Annotated[int, Field(ge=0)] | None = None
    about_bytes: Annotated[int, Field(ge=0)] | None = None
    sha256: Sha256 | None = None
    member: str | None = None
    name: str | None = None

    def where(self) -> Place:
        return read_place(self.place)

    def called(self) -> str:
        """The name of the file here."""
        if self.member is not None:
            return safe_name(self.member.rpartition("/")[2])
        if self.name:
            return safe_name(self.name)
        return file_name(self.where())

    @property
    def key(self) -> str:
        """Identifies the place to a later run."""
        where = self.where().key
        return f"{where}#{self.member}" if self.member else where

    @property
    def checksum(self) -> Checksum | None:
        if not self.sha256:
            return None
        return Checksum("sha256", self.sha256)

    @property
    def estimate(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return self.bytes or self.about_bytes or 0


Places = Annotated[list[Alternative], Field(min_length=1)]
"""Places of the same file, tried in this order."""


class QuestionsToFetch(SourcesPart):
    """A file of questions, and where in a mixture it stands."""

    dataset: Dataset
    split: Literal["train", "test_id", "test_ood"]
    weight: Annotated[float, Field(gt=0)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    places: list[Alternative] = Field(alias="from", min_length=1)
    aliases: list[Alternative] = Field(default_factory=list)


class CorpusToFetch(SourcesPart):
    """The documents that are searched."""

    places: list[Alternative] = Field(alias="from", min_length=1)


class IndexCost(SourcesPart):
    """What the index of the corpus takes, in the end and while it is built, for the estimate."""

    about_bytes: Annotated[int, Field(ge=0)] = 0
    building_bytes: Annotated[int, Field(ge=0)] = 0
    hours: Annotated[float, Field(ge=0)] = 0.0


class AnySources(SourcesPart):
    """All that a preparation fetches: a model, and what the preparation's own kind of sources adds."""

    model: str

    def require_sound(self, path: Path) -> None:
        """What no single key shows. `path`: the file. Raises PrepareError."""


class DeepSearchSources(AnySources):
    """Deep Search's."""

    questions: list[QuestionsToFetch]
    corpus: CorpusToFetch
    index: IndexCost = IndexCost()

    def require_sound(self, path: Path) -> None:
        for alternative in self.corpus.places:
            alternative.called()
        held: dict[tuple[str, str], tuple[str, ...]] = {}
        for questions in self.questions:
            for places in (questions.places, questions.aliases):
                _require_a_name_of_its_own(questions.dataset, places, held, path)


def _require_a_name_of_its_own(
    dataset: str, places: list[Alternative], held: dict[tuple[str, str], tuple[str, ...]], path: Path
) -> None:
    """Two files under one name would replace each other. Raises PrepareError."""
    file = tuple(alternative.key for alternative in places)
    for alternative in places:
        name = alternative.called()
        if held.setdefault((dataset, name), file) != file:
            raise PrepareError(
                f"{path}: two files of {dataset} would both be called {name}: give one of them another `name`"
            )


Kind = TypeVar("Kind", bound=AnySources)


@overload
def read_sources(path: Path) -> DeepSearchSources: ...
@overload
def read_sources(path: Path, kind: type[Kind]) -> Kind: ...
def read_sources(path: Path, kind: type[AnySources] = DeepSearchSources) -> AnySources:
    """The sources file at `path`, of a kind. Raises PrepareError naming what is wrong in it."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PrepareError(f"cannot read the sources {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise PrepareError(f"{path} is not YAML: {error}") from None
    try:
        sources = kind.model_validate(raw)
    except ValidationError as error:
        raise PrepareError(f"{path}: " + "; ".join(faults_of(error))) from None
    sources.require_sound(path)
    return sources
