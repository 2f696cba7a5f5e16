"""Deep Search, prepared: model, published questions, the corpus, and the index that is searched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from megatron_empg import __version__
from megatron_empg.common.locks import hold
from megatron_empg.environments.deep_search.search.errors import IndexFolderError
from megatron_empg.environments.deep_search.search.manifest import MANIFEST, Manifest, verify_files
from megatron_empg.prepare.costs import Bandwidth, Cost, require_room, table
from megatron_empg.prepare.disk import named_disk_faults
from megatron_empg.prepare.download import Download
from megatron_empg.prepare.errors import BrokenManifest, NotThere, PrepareError
from megatron_empg.prepare.fetching import DOWNLOADS, Fetching
from megatron_empg.prepare.hub import Hub
from megatron_empg.prepare.manifest import (
    NAME,
    Prepared,
    PreparedFile,
    PreparedIndex,
    PreparedModel,
    PreparedQuestions,
    read_prepared,
    write_prepared,
)
from megatron_empg.prepare.model import ModelFolder, expected_bytes, fetch_model, name_of, require_model
from megatron_empg.prepare.progress import Progress
from megatron_empg.prepare.records import Records
from megatron_empg.prepare.sources import Alternative, Questions, Sources
from megatron_empg.prepare.web import TOKEN_VARIABLE, new_client

PARTS = ("model", "data", "corpus", "index")
INDEX = "index"


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for. `only`: the parts to prepare, all of them unless given.

    `quick`: the files of an index that is there are compared by their sizes alone.
    """

    folder: Path
    model: str | None = None
    only: tuple[str, ...] = ()
    connections: int = 8
    bandwidth: float | None = None
    dry_run: bool = False
    quick: bool = False

    def wants(self, part: str) -> bool:
        return not self.only or part in self.only


def prepare(sources: Sources, wishes: Wishes, say: Callable[[str], None]) -> Prepared:
    """Fetch what is wanted and not here yet, build the index, and write prepared.json. Raises PrepareError."""
    require_model(_model_of(sources, wishes))
    before = _earlier(wishes.folder, say)
    records = Records(wishes.folder)
    costs = expected_costs(sources, wishes, before, records)
    bandwidth = Bandwidth.of(wishes.bandwidth, records.bytes_per_second)
    say(table(costs, bandwidth, wishes.folder))
    require_room(costs, wishes.folder)
    if wishes.dry_run:
        say("nothing was fetched (--dry-run)")
        return before
    with _alone(wishes.folder):
        progress = Progress(sum(cost.fetch for cost in costs), say)
        with new_client(wishes.connections) as client, progress:
            download = Download(client, received=progress.add, say=say)
            hub = Hub(client, download.stop.wait)
            fetching = Fetching(wishes.folder, download, hub, records, say, wishes.connections)
            prepared = _Preparation(sources, wishes, fetching, before).fetch()
        if progress.bytes_per_second:
            records.put_speed(progress.bytes_per_second)
        if wishes.wants("index"):
            prepared = _with_index(prepared, wishes, say)
        shutil.rmtree(wishes.folder / DOWNLOADS, ignore_errors=True)
    return prepared


def _model_of(sources: Sources, wishes: Wishes) -> str:
    return sources.model if wishes.model is None else wishes.model


def _earlier(folder: Path, say: Callable[[str], None]) -> Prepared:
    """What earlier runs wrote down. A broken note of them is written anew: what was fetched is noted elsewhere."""
    try:
        return read_prepared(folder) or Prepared()
    except BrokenManifest:
        say(
            f"{folder / NAME} is broken and is written anew, with the parts of this run; files that are there are "
            "checked and kept. Name each further model by --model again"
        )
        return Prepared()


def expected_costs(sources: Sources, wishes: Wishes, before: Prepared, records: Records) -> list[Cost]:
    """By part, what is not here yet; nothing is asked of any server."""
    costs = []
    model = _model_of(sources, wishes)
    if wishes.wants("model"):
        whole = expected_bytes(model)
        there = _bytes_below(wishes.folder / "model" / name_of(model))
        left = max(0, whole - there)
        costs.append(Cost("model", left, left, unknown=not whole and not there))
    if wishes.wants("data"):
        left = sum(_left(wishes.folder, item, records) for item in _question_places(sources))
        costs.append(Cost("data", left, left))
    if wishes.wants("corpus"):
        left = _left(wishes.folder, ("corpus", sources.corpus.places), records)
        costs.append(Cost("corpus", left, left))
    if wishes.wants("index") and before.index is None:
        index = sources.index
        costs.append(Cost("index", 0, index.about_bytes, index.hours, peak=index.building_bytes))
    return costs


class _Preparation:
    """One run: what is prepared so far is written after every part."""

    def __init__(self, sources: Sources, wishes: Wishes, fetching: Fetching, before: Prepared) -> None:
        self._sources = sources
        self._wishes = wishes
        self._fetching = fetching
        self._prepared = before

    def fetch(self) -> Prepared:
        """Small things first: what is wrong with a place shows before the hours that a model takes."""
        if self._wishes.wants("data"):
            self._keep(questions=self._questions())
        if self._wishes.wants("corpus"):
            name = self._fetching.any_of("corpus", self._sources.corpus.places)
            self._keep(corpus=self._file(name))
        if self._wishes.wants("model"):
            self._keep(models={**self._prepared.models, **self._model()})
        return self._prepared

    def _keep(self, **parts: object) -> None:
        stamp = {"version": __version__, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        self._prepared = self._prepared.model_copy(update={**parts, **stamp})
        write_prepared(self._wishes.folder, self._prepared)

    def _questions(self) -> dict[str, list[PreparedQuestions]]:
        wanted = self._sources.questions
        files = self._fetching.each([partial(self._question_file, questions) for questions in wanted])
        aliases = self._fetching.each([partial(self._aliases, questions) for questions in wanted])
        found: dict[str, list[PreparedQuestions]] = {}
        for questions, file, other_names in zip(wanted, files, aliases, strict=True):
            entry = PreparedQuestions(
                dataset=questions.dataset, file=file, weight=questions.weight, limit=questions.limit,
                aliases=other_names,
            )  # fmt: skip
            found.setdefault(questions.split, []).append(entry)
        return found

    def _question_file(self, questions: Questions) -> PreparedFile:
        return self._file(self._fetching.any_of(_folder(questions), questions.places))

    def _aliases(self, questions: Questions) -> PreparedFile | None:
        if not questions.aliases:
            return None
        try:
            return self._file(self._fetching.any_of(f"{_folder(questions)}", questions.aliases))
        except NotThere as error:
            self._fetching.say(f"going on without other names of {questions.dataset}'s answers: {error}")
            return None

    def _model(self) -> dict[str, PreparedModel]:
        wanted = _model_of(self._sources, self._wishes)
        name = name_of(wanted)
        earlier = self._prepared.models.get(name)
        before = None
        if earlier is not None:
            files = tuple(file.path for file in earlier.files)
            before = ModelFolder(name, earlier.path, earlier.origin, files)
        found = fetch_model(wanted, self._fetching, before)
        kept = [self._file(file) for file in found.files]
        return {name: PreparedModel(path=found.path, origin=found.origin, files=kept)}

    def _file(self, name: str) -> PreparedFile:
        record = self._fetching.records.file(name)
        assert record is not None, f"{name} was fetched without a record"
        return PreparedFile(
            path=name, size=record.size, sha256=record.sha256, origin=record.origin, checked=record.checked
        )


def _with_index(prepared: Prepared, wishes: Wishes, say: Callable[[str], None]) -> Prepared:
    """Build the index of the corpus, unless there is one of this very corpus."""
    corpus, index = prepared.corpus, prepared.index
    if corpus is None:
        raise PrepareError("there is no corpus to build an index of; prepare it first (--only corpus)")
    place = wishes.folder / INDEX
    if place.exists():
        fault = _fault_of_index(index, place, corpus, wishes, say)
        if index is not None and not fault:
            say("the index is there")
            return prepared
        if index is not None:
            say(f"building the index anew: {fault}")
            shutil.rmtree(place)
        elif fault:
            raise PrepareError(fault)
    command = index_command(wishes.folder / corpus.path, place)
    say(f"building the index: {' '.join(command[1:])}")
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise PrepareError(
            f"`empg index` ended with status {done.returncode}: see its lines above. What was fetched is kept; "
            "the same command goes on with the index"
        )
    built = PreparedIndex(path=INDEX, size=index_bytes(place), of_sha256=corpus.sha256)
    prepared = prepared.model_copy(update={"index": built})
    write_prepared(wishes.folder, prepared)
    return prepared


def _fault_of_index(
    index: PreparedIndex | None, place: Path, corpus: PreparedFile, wishes: Wishes, say: Callable[[str], None]
) -> str:
    """Why the index that is there is not the corpus's; empty where it is. `index`: what was noted of it.

    It is read whole, unless the user is in a hurry and there is a note of its size.
    """
    if index is not None and index.of_sha256 != corpus.sha256:
        return "it is of another corpus"
    try:
        size = index_bytes(place)
        if index is not None and size != index.size:
            return f"its files have {size} bytes and must have {index.size}"
        if index is None or not wishes.quick:
            say(f"checking the index: reading {size / 1e9:.1f} GB (--quick compares sizes alone)")
            verify_files(place, progress=lambda name: say(f"checking the index: {name}"))
    except (IndexFolderError, OSError) as error:
        return str(error)
    return ""


def index_bytes(folder: Path) -> int:
    """Of an index and its manifest; vectors that somebody added later are not counted. Raises IndexFolderError."""
    names = (MANIFEST, *Manifest.read(folder).files)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise IndexFolderError(f"{folder} lacks {', '.join(missing)}: build the index again")
    return sum((folder / name).stat().st_size for name in names)


def index_command(corpus: Path, out: Path) -> list[str]:
    """What builds the index of a corpus. It is written aside and renamed; one that is there and whole is kept."""
    return [sys.executable, "-m", "megatron_empg.cli", "index", str(corpus), str(out)]


def _folder(questions: Questions) -> str:
    return f"questions/{questions.dataset}"


def _question_places(sources: Sources) -> Iterator[tuple[str, list[Alternative]]]:
    """(folder, places) of every file of questions and of other names, each once."""
    seen = set()
    for questions in sources.questions:
        for places in (questions.places, questions.aliases):
            key = (_folder(questions), *(alternative.key for alternative in places))
            if places and key not in seen:
                seen.add(key)
                yield _folder(questions), places


def _left(root: Path, item: tuple[str, list[Alternative]], records: Records) -> int:
    """Bytes to fetch for a file by its first place; 0 where any place's is here."""
    folder, places = item
    for alternative in places:
        name = f"{folder}/{alternative.called()}"
        if records.file(name) is not None and (root / name).exists():
            return 0
    first = root / folder / f"{places[0].called()}.part"
    there = first.stat().st_size if first.exists() else 0
    return max(0, places[0].estimate - there)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two preparations of one folder would write into each other's parts."""
    with named_disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".prepare.lock").open("a", encoding="utf-8")
    with lock:
        try:
            hold(lock, PrepareError(f"another preparation of {folder} is running; wait for it"))
        except OSError as error:
            raise PrepareError(f"{folder} cannot be locked: {error.strerror}") from None
        yield
