"""`empg index`: from a corpus file to an index folder, read once, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_empg.common.files import aside_of, sync
from megatron_empg.common.locks import hold_where_possible
from megatron_empg.environments.deep_search.search.bm25_index import SearchIndex
from megatron_empg.environments.deep_search.search.corpus_lines import CorpusFile
from megatron_empg.environments.deep_search.search.errors import (
    CorpusError,
    IndexFolderError,
    disk_errors_named,
)
from megatron_empg.environments.deep_search.search.manifest import IndexManifest, file_digests
from megatron_empg.environments.deep_search.search.passages import PassageWriter
from megatron_empg.environments.deep_search.search.postings_build import Bm25, PostingsBuilder
from megatron_empg.environments.deep_search.search.top_k import compiled_search
from megatron_empg.environments.deep_search.search.words import WordRules, WordSplitter

MOST_DOCUMENTS = 2**31 - 1
PROGRESS_EVERY = 10.0  # seconds
DISK_PER_BYTE = 4.0
"""Bytes on the disk per byte of an uncompressed corpus while building: texts 1, lists 1.2, runs of the lists 1.2,
and some to spare. Afterwards 2.3 are left."""
COMPRESSION = 3.0
"""How many times shorter gzip makes such a corpus."""

Progress = Callable[[str], None]


def build_index(
    corpus: Path,
    out: Path,
    *,
    bm25: Bm25 | None = None,
    rules: WordRules | None = None,
    progress: Progress = print,
) -> IndexManifest:
    """Make the folder `out`. It is written aside and renamed when whole; an interrupted making starts anew.

    An index that is there already of the same source and settings is left as it is. Memory: about 1.2 GB, and
    0.2 GB per million different words, and 24 bytes per document. Raises CorpusError, IndexFolderError or
    MissingPackageError.
    """
    compiled_search()  # what is missing for searching must be told before hours of building
    bm25, rules = bm25 or Bm25(), rules or WordRules()
    source, out = CorpusFile(Path(corpus)), Path(out)
    aside = aside_of(out)
    with disk_errors_named(aside):
        if out.exists():
            return _present(source, out, bm25, rules, progress)
        _tell_cost(source, out, progress)
    with disk_errors_named(aside), _alone(aside):
        manifest = _write(source, aside, bm25, rules, progress)
        SearchIndex.open(aside)  # proves that it can be opened, and makes this machine's code for searching
        _sync(aside)
        os.replace(aside, out)
    progress(f"{out}: {manifest.documents:,} documents, {_gb(_size(out))}")
    return manifest


def _write(source: CorpusFile, folder: Path, bm25: Bm25, rules: WordRules, progress: Progress) -> IndexManifest:
    words = WordSplitter(rules)
    runs = folder / "runs"
    runs.mkdir()
    postings = PostingsBuilder(runs, bm25)
    with PassageWriter(folder) as passages:
        report = _Reports(source, progress)
        for passage in source:
            if passages.count == MOST_DOCUMENTS:
                raise CorpusError(f"{source.path}: holds more than {MOST_DOCUMENTS:,} documents; split it")
            passages.append(passage)
            postings.append(words(f"{passage.title}\n{passage.text}"))
            report(passages.count)
        if not passages.count:
            raise CorpusError(f"{source.path}: holds no documents; write one a line")
    progress(f"{passages.count:,} documents read; {postings.different_words:,} different words")
    different = postings.different_words
    postings.finish(folder, progress)
    shutil.rmtree(runs)
    manifest = IndexManifest(
        source=source.path.name,
        source_sha256=source.sha256,
        documents=passages.count,
        titles=passages.count - passages.continued - passages.repeated,
        continued=passages.continued,
        repeated=passages.repeated,
        words=different,
        postings=postings.postings,
        k1=bm25.k1,
        b=bm25.b,
        stop_words=rules.stop_words,
        files=file_digests(folder),
    )
    manifest.write(folder)
    return manifest


class _Reports:
    """A line of progress every few seconds."""

    def __init__(self, source: CorpusFile, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._started = self._told = time.monotonic()

    def __call__(self, count: int) -> None:
        if count % 1000:
            return
        now = time.monotonic()
        if now - self._told < PROGRESS_EVERY:
            return
        self._told = now
        rate = count / (now - self._started)
        self._progress(f"{count:,} documents, {rate:,.0f} per second, {self._source.share_read:.0%} of the corpus")


def _present(source: CorpusFile, out: Path, bm25: Bm25, rules: WordRules, progress: Progress) -> IndexManifest:
    """The manifest of an index that is there already. Raises IndexFolderError if it is another's."""
    try:
        manifest = IndexManifest.read(out)
    except IndexFolderError:
        raise IndexFolderError(f"{out} exists and is not an index; remove it or name another folder") from None
    wanted = {"k1": bm25.k1, "b": bm25.b, "stop_words": rules.stop_words}
    if manifest.settings() != wanted:
        raise IndexFolderError(
            f"{out} is an index with {manifest.settings()}, not with {wanted}; remove it or name another folder"
        )
    with source.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest.source_sha256:
        raise IndexFolderError(
            f"{out} is an index of another file ({manifest.source}, sha256 {manifest.source_sha256}) than "
            f"{source.path} (sha256 {found}); remove it or name another folder"
        )
    progress(f"{out}: there already, {manifest.documents:,} documents")
    return manifest


def _tell_cost(source: CorpusFile, out: Path, progress: Progress) -> None:
    text = source.size * (COMPRESSION if source.compressed else 1.0)
    needed = text * DISK_PER_BYTE
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    progress(f"{source.path}: building takes about {_gb(needed)} of disk at {parent}, which has {_gb(free)} free")
    if free < needed:
        progress(f"warning: {parent} may be too small")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """An empty folder that no other process writes to. It is removed after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_path = folder.with_name(folder.name + ".lock")
    with lock_path.open("w", encoding="utf-8") as lock:
        hold_where_possible(lock, IndexFolderError(f"another process is writing {folder}; wait for it"))
        if not lock_path.exists() or lock_path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise IndexFolderError(f"another process has just written {folder}; give the command again")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            lock_path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have everything on the disk before the rename says that it is."""
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _gb(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB"
