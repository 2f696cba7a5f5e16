"""Deep Search, prepared: published questions, the corpus, and the index that is searched."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from megatron_empg.environments.deep_search.search.errors import IndexFolderError
from megatron_empg.environments.deep_search.search.manifest import MANIFEST, IndexManifest, verify_files
from megatron_empg.prepare.costs import Cost
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.fetching import FolderFetcher
from megatron_empg.prepare.file_costs import bytes_left
from megatron_empg.prepare.manifest import (
    DEEPSEARCH,
    PreparedFile,
    PreparedFolder,
    PreparedIndex,
    PreparedQuestions,
)
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparation import Preparation, PreparationParts
from megatron_empg.prepare.programs import run_program
from megatron_empg.prepare.records import FileRecords
from megatron_empg.prepare.run import costs_of, run, wanted_parts
from megatron_empg.prepare.sources import (
    Alternative,
    CorpusToFetch,
    DeepSearchSources,
    IndexCost,
    QuestionsToFetch,
)
from megatron_empg.prepare.work import InitialFolder, PreparationRun

__all__ = ["DeepSearchPreparation", "PreparationOptions", "expected_costs", "prepare"]

INDEX = "index"


class DeepSearchPreparation(Preparation):
    """What agents that search are trained on."""

    name: ClassVar[str] = DEEPSEARCH
    estimate: ClassVar[str] = "what the index takes is an estimate"

    def __init__(self, sources: DeepSearchSources) -> None:
        self._sources = sources

    @property
    def default_model(self) -> str:
        return self._sources.model

    def parts(self, options: PreparationOptions) -> PreparationParts:
        fetched = (QuestionsPart(self._sources.questions), CorpusPart(self._sources.corpus))
        return PreparationParts(fetched, (IndexPart(self._sources.index),))


def prepare(sources: DeepSearchSources, options: PreparationOptions, say: Callable[[str], None]) -> PreparedFolder:
    """Fetch what is wanted and not here yet, build the index, and write prepared.json. Raises PrepareError."""
    return run(DeepSearchPreparation(sources), options, say)


def expected_costs(
    sources: DeepSearchSources, options: PreparationOptions, before: PreparedFolder, records: FileRecords
) -> list[Cost]:
    """The costs per part of what is not here yet; no server is asked."""
    return costs_of(
        wanted_parts(DeepSearchPreparation(sources), options), InitialFolder(options.folder, before, records)
    )


@dataclass(frozen=True)
class QuestionsPart:
    """Files of questions, and of other names of their answers."""

    wanted: list[QuestionsToFetch]
    name: ClassVar[str] = "data"

    def require(self) -> None:
        """Nothing."""

    def cost(self, before: InitialFolder) -> Cost:
        left = 0
        for folder, places in _question_places(self.wanted):
            left += bytes_left(before.folder, folder, places, before.records)
        return Cost(self.name, left, left)

    def fetch(self, work: PreparationRun, fetching: FolderFetcher) -> None:
        files = fetching.each([partial(_question_file, questions, work, fetching) for questions in self.wanted])
        aliases = fetching.each([partial(_aliases, questions, work, fetching) for questions in self.wanted])
        found: dict[str, list[PreparedQuestions]] = {}
        for questions, file, other_names in zip(self.wanted, files, aliases, strict=True):
            entry = PreparedQuestions(
                dataset=questions.dataset, file=file, weight=questions.weight, limit=questions.limit,
                aliases=other_names,
            )  # fmt: skip
            found.setdefault(questions.split, []).append(entry)
        work.keep(questions=found)


@dataclass(frozen=True)
class CorpusPart:
    """The documents that are searched."""

    wanted: CorpusToFetch
    name: ClassVar[str] = "corpus"

    def require(self) -> None:
        """Nothing."""

    def cost(self, before: InitialFolder) -> Cost:
        left = bytes_left(before.folder, "corpus", self.wanted.places, before.records)
        return Cost(self.name, left, left)

    def fetch(self, work: PreparationRun, fetching: FolderFetcher) -> None:
        name = fetching.any_of("corpus", self.wanted.places)
        work.keep(corpus=work.file(name))


@dataclass(frozen=True)
class IndexPart:
    """Built of the corpus once, read again by every later run. `about`: what it takes, for the estimate."""

    about: IndexCost
    name: ClassVar[str] = "index"

    def require(self) -> None:
        """Nothing: slurm/prepare.sh looks for the packages."""

    def cost(self, before: InitialFolder) -> Cost | None:
        if before.prepared.index is not None:
            return None
        about = self.about
        return Cost(
            self.name, 0, about.about_bytes, about.hours, peak=about.building_bytes,
            meanwhile="the index is built",
        )  # fmt: skip

    def make(self, work: PreparationRun) -> None:
        """Build the index of the corpus, unless there is one of this very corpus."""
        corpus = work.prepared.corpus
        if corpus is None:
            raise PrepareError("there is no corpus to build an index of; prepare it first (--only corpus)")
        place = work.folder / INDEX
        if place.exists() and _is_sound(place, corpus, work):
            return
        command = index_command(work.folder / corpus.path, place)
        work.say(f"building the index: {' '.join(command[1:])}")
        status = run_program(command)
        if status:
            raise PrepareError(
                f"`empg index` ended with status {status}: see its lines above. What was fetched is kept; "
                "the same command goes on with the index"
            )
        work.keep(index=PreparedIndex(path=INDEX, size=index_bytes(place), of_sha256=corpus.sha256))


def _question_file(questions: QuestionsToFetch, work: PreparationRun, fetching: FolderFetcher) -> PreparedFile:
    return work.file(fetching.any_of(_folder(questions), questions.places))


def _aliases(questions: QuestionsToFetch, work: PreparationRun, fetching: FolderFetcher) -> PreparedFile | None:
    if not questions.aliases:
        return None
    try:
        return work.file(fetching.any_of(_folder(questions), questions.aliases))
    except SourceUnavailable as error:
        work.say(f"going on without other names of {questions.dataset}'s answers: {error}")
        return None


def _folder(questions: QuestionsToFetch) -> str:
    return f"questions/{questions.dataset}"


def _question_places(wanted: list[QuestionsToFetch]) -> Iterator[tuple[str, list[Alternative]]]:
    """(folder, places) of every file of questions and of other names, each once."""
    seen = set()
    for questions in wanted:
        for places in (questions.places, questions.aliases):
            key = (_folder(questions), *(alternative.key for alternative in places))
            if places and key not in seen:
                seen.add(key)
                yield _folder(questions), places


def _is_sound(place: Path, corpus: PreparedFile, work: PreparationRun) -> bool:
    """Whether the index that is there is the corpus's. One that was noted and is not is removed.

    Raises PrepareError for one of which nothing is noted, and which is not the corpus's.
    """
    index = work.prepared.index
    fault = _fault_of_index(index, place, corpus, work)
    if index is not None and not fault:
        work.say("the index is there")
        return True
    if index is not None:
        work.say(f"building the index again: {fault}")
        shutil.rmtree(place)
    elif fault:
        raise PrepareError(fault)
    return False


def _fault_of_index(index: PreparedIndex | None, place: Path, corpus: PreparedFile, work: PreparationRun) -> str:
    """Why the index that is there is not the corpus's; empty where it is. `index`: what was noted of it.

    It is read whole, unless the user is in a hurry and there is a note of its size.
    """
    if index is not None and index.of_sha256 != corpus.sha256:
        return "it is of another corpus"
    try:
        size = index_bytes(place)
        if index is not None and size != index.size:
            return f"its files have {size} bytes and must have {index.size}"
        if index is None or not work.quick:
            work.say(f"checking the index: reading {size / 1e9:.1f} GB (--quick compares sizes alone)")
            verify_files(place, progress=lambda name: work.say(f"checking the index: {name}"))
    except (IndexFolderError, OSError) as error:
        return str(error)
    return ""


def index_bytes(folder: Path) -> int:
    """Bytes of an index and its manifest, without vectors added later. Raises IndexFolderError."""
    names = (MANIFEST, *IndexManifest.read(folder).files)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise IndexFolderError(f"{folder} lacks {', '.join(missing)}: build the index again")
    return sum((folder / name).stat().st_size for name in names)


def index_command(corpus: Path, out: Path) -> list[str]:
    """What builds the index of a corpus. It is written aside and renamed; one that is there and whole is kept."""
    return [sys.executable, "-m", "megatron_empg.cli", "index", str(corpus), str(out)]
