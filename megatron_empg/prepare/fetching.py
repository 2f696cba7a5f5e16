"""Fetches sets of files, each from the first of its places that has it; what is here already is only checked."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from megatron_empg.prepare.archives import take_out
from megatron_empg.prepare.checksums import Checksum, digest_of
from megatron_empg.prepare.download import Download, FileToFetch
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.hub import Hub, HubFile
from megatron_empg.prepare.places import HubPlace, Kind, UrlPlace
from megatron_empg.prepare.records import Checked, FileRecord, FileRecords
from megatron_empg.prepare.sources import Alternative
from megatron_empg.prepare.web import hub_headers

DOWNLOADS = "downloads"
"""Folder of archives, until the end of the preparation."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Origin:
    """What to fetch, `place` as the sources have it, and what a record says of where it came from."""

    wanted: FileToFetch
    place: str
    origin: str
    checked: Checked


class FolderFetcher:
    """Fetches files into one folder, with so many connections at once."""

    def __init__(
        self,
        root: Path,
        download: Download,
        hub: Hub,
        records: FileRecords,
        say: Callable[[str], None],
        connections: int,
    ) -> None:
        self.root = root
        self.records = records
        self.say = say
        self._download = download
        self._hub = hub
        self._connections = connections
        self._listings: dict[tuple[str, str], list[HubFile]] = {}
        self._asking = threading.Lock()
        self._one_at_a_time: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def each(self, work: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of all, in order. The first fault ends the others, whose parts stay."""
        with ThreadPoolExecutor(self._connections) as pool:
            running = [pool.submit(task) for task in work]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:
                self._download.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [done.result() for done in running]

    def any_of(self, folder: str, places: Sequence[Alternative]) -> str:
        """The name, below the root, of the file that one of these places has. Raises PrepareError."""
        with self._one_at_a_time[f"{folder}/{places[0].called()}"]:
            return self._any_of(folder, places)

    def _any_of(self, folder: str, places: Sequence[Alternative]) -> str:
        for alternative in places:
            name = f"{folder}/{alternative.called()}"
            if self.is_sound(name, alternative.key) and self._is_as_published(name, alternative):
                return name
        faults = []
        for alternative in places:
            name = f"{folder}/{alternative.called()}"
            try:
                self._bring(name, alternative)
            except SourceUnavailable as error:
                self.say(f"not to be had: {error}")
                faults.append(str(error))
            else:
                return name
        raise SourceUnavailable(f"no place has {folder}/{places[0].called()}: " + "; ".join(faults))

    def is_sound(self, name: str, place: str) -> bool:
        """Whether the file is here, from this place, and still what it was when it was fetched."""
        record, path = self.records.file(name), self.root / name
        if record is None or record.place != place or not path.is_file():
            return False
        if path.stat().st_size == record.size and digest_of(path).sha256 == record.sha256:
            return True
        self.say(f"{name} is not what it was when it was fetched: fetching it again")
        return False

    def first_fetched(self, name: str, place: str) -> tuple[Checksum | None, str]:
        """The checksum that a file of this place had at its first fetch, and what to say of another one now."""
        before = self.records.file(name)
        if before is None or before.place != place:
            return None, ""
        if_changed = (
            f". It was another file when it was first fetched; to accept the new one, take {name} out of "
            f"{self.root / '.fetched.json'}"
        )
        return Checksum("sha256", before.sha256), if_changed

    def _is_as_published(self, name: str, alternative: Alternative) -> bool:
        """Whether a file that is here has the sha256 and size that the sources tell by now."""
        record = self.records.file(name)
        assert record is not None, f"{name} is sound without a record"
        if alternative.member is None:
            sha256, size = record.sha256, record.size
        else:  # the sources tell those of the archive
            sha256, size = record.archive, None
        wrong_sha256 = alternative.sha256 is not None and alternative.sha256 != sha256
        wrong_size = None not in (alternative.bytes, size) and alternative.bytes != size
        if wrong_sha256 or wrong_size:
            self.say(f"{name} is not what the sources tell by now: fetching it again")
            return False
        if alternative.sha256 is not None and record.checked == "first fetch":
            self.records.put(name, replace(record, checked="published"))
        return True

    def bring(self, name: str, origin: Origin) -> None:
        """Fetch one file, unless it is here. Raises PrepareError."""
        if not self.is_sound(name, origin.place):
            self._fetch(name, origin)

    def _fetch(self, name: str, origin: Origin) -> None:
        sha256 = self._left_by_a_kill(origin.wanted) or self._download.fetch(origin.wanted)
        size = origin.wanted.path.stat().st_size
        self.records.put(name, FileRecord(origin.place, origin.origin, size, sha256, origin.checked))
        self.say(f"fetched {name}, {size / 1e9:.3f} GB, sha256 {sha256[:12]}… ({_by_what(origin.checked)})")

    def listing(self, place: HubPlace, kind: Kind) -> tuple[str, list[HubFile]]:
        """The commit of a repository that this folder holds to, and its files. Raises PrepareError."""
        key = f"{kind}:{place.repository}@{place.revision}"
        with self._asking:
            commit = self.records.commit(key)
            if commit is None:
                commit = self._hub.commit(place, kind)
                self.records.put_commit(key, commit)
            if (key, commit) not in self._listings:
                self._listings[key, commit] = self._hub.files(place, kind, commit)
            return commit, self._listings[key, commit]

    def _bring(self, name: str, alternative: Alternative) -> None:
        if alternative.member is None:
            self._fetch(name, self._ask(name, alternative))
            self._require_published(name, alternative)
            return
        inside = f"{DOWNLOADS}/{_archive_name(alternative)}"
        with self._one_at_a_time[inside]:
            origin = self._ask(inside, alternative)
            self.bring(inside, origin)
            archive = self._require_published(inside, alternative)
            path = self.root / name
            take_out(self.root / inside, alternative.member, path)
        size, sha256 = path.stat().st_size, digest_of(path).sha256
        record = FileRecord(alternative.key, origin.origin, size, sha256, origin.checked, archive.sha256)
        self.records.put(name, record)

    def _require_published(self, name: str, alternative: Alternative) -> FileRecord:
        """What came is what the sources tell, by whatever else it was checked. Raises PrepareError."""
        record = self.records.file(name)
        assert record is not None, f"{name} was fetched without a record"
        told = (
            alternative.sha256 or record.sha256,
            record.size if alternative.bytes is None else alternative.bytes,
        )
        if told != (record.sha256, record.size):
            raise PrepareError(
                f"{alternative.where()}: the sources want {told[1]} bytes of sha256 {told[0]}, and it has "
                f"{record.size} of {record.sha256}: correct the sources, or name another place"
            )
        return record

    def _ask(self, name: str, alternative: Alternative) -> Origin:
        """What there is to fetch at a place."""
        place, path = alternative.where(), self.root / name
        if isinstance(place, HubPlace):
            return self._ask_hub(place, path, alternative)
        assert isinstance(place, UrlPlace)
        checksum, checked = alternative.checksum, _published(alternative)
        if_changed = ""
        if checksum is None:
            checksum, if_changed = self.first_fetched(name, place.key)
        wanted = FileToFetch(place.url, path, alternative.bytes, checksum, if_changed=if_changed)
        return Origin(wanted, place.key, str(place), checked)

    def _ask_hub(self, place: HubPlace, path: Path, alternative: Alternative) -> Origin:
        commit, files = self.listing(place, "dataset")
        found = [file for file in files if file.name == place.file]
        if not found:
            raise SourceUnavailable(f"{place.repository} has no file {place.file} at commit {commit}")
        file = found[0]
        if (
            alternative.checksum is not None
            and file.checksum.kind == "sha256"
            and file.checksum != alternative.checksum
        ):
            raise PrepareError(
                f"{place}: the hub has a file of {file.checksum}, the sources want {alternative.checksum}"
            )
        at = HubPlace(place.repository, commit, file.name)
        if alternative.bytes not in (None, file.size):
            raise PrepareError(
                f"{place}: the hub has a file of {file.size} bytes, the sources want {alternative.bytes}"
            )
        return Origin(of_hub(file, path), place.key, str(at), "hub")

    def _left_by_a_kill(self, wanted: FileToFetch) -> str | None:
        """The sha256 of a file that is whole, but was not noted any more; None where there is none."""
        if wanted.checksum is None or not wanted.path.is_file():
            return None
        digest = digest_of(wanted.path, wanted.git_size)
        if digest.of_kind(wanted.checksum.kind) != wanted.checksum.value:
            return None
        return digest.sha256


def of_hub(file: HubFile, path: Path) -> FileToFetch:
    """How a file of the hub is fetched."""
    return FileToFetch(file.url, path, file.size, file.checksum, hub_headers())


def _published(alternative: Alternative) -> Checked:
    if not alternative.sha256:
        return "first fetch"
    return "published"


def _by_what(checked: Checked) -> str:
    words = {
        "hub": "checked by the hub's checksum",
        "published": "checked by a published checksum",
        "first fetch": "no checksum is published: later runs check that it stays the same",
    }
    return words[checked]


def _archive_name(alternative: Alternative) -> str:
    return Alternative(place=alternative.place, name=alternative.name).called()
