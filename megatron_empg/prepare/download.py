"""Fetches one file: into NAME.part, resumed where it was cut off, checked, and then renamed to NAME.

NAME.part.json says what the part is of. Whatever moment a fetch is killed at, the next one goes on.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from megatron_empg.common.files import put_in_place, put_json
from megatron_empg.common.json_files import object_or_nothing
from megatron_empg.prepare.checksums import Checksum, Digest, digest_of
from megatron_empg.prepare.disk import named_disk_faults
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.places import shown, url_key
from megatron_empg.prepare.web import refusal

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 8
"""In a row that brought nothing; one that brought bytes begins the count anew."""
LONGEST_WAIT = 60.0
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class FileToFetch:
    """A file to fetch. `size` and `checksum` are what it must have, where that is known before.

    `if_changed`: what an error says of a wrong checksum besides.
    """

    url: str
    path: Path
    size: int | None = None
    checksum: Checksum | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    if_changed: str = ""

    @property
    def git_size(self) -> int | None:
        """The size that git's checksum needs, where that one is to be compared."""
        if self.checksum is None or self.checksum.kind != "git":
            return None
        return self.size

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")


@dataclass
class _Part:
    """What is there of a file: so many bytes, their checksums, and by what the server knows this version.

    `total`: bytes of the whole file, None while they are not known.
    """

    have: int
    digest: Digest
    total: int | None = None
    version: str = ""

    @property
    def whole(self) -> bool:
        return self.have == self.total


class DownloadStopped(Exception):
    """Another file failed, or the user interrupted: this one stays a part."""


class Download:
    """Fetches files, in many threads at once. `received` is told of every block; `pause` waits before attempts."""

    def __init__(
        self,
        client: httpx.Client,
        *,
        received: Callable[[int], None] = lambda size: None,
        say: Callable[[str], None] = print,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._client = client
        self._received = received
        self._say = say
        self.stop = threading.Event()
        self.pause = pause or self.stop.wait

    def fetch(self, wanted: FileToFetch) -> str:
        """Fetch the file whole and return its sha256. Raises PrepareError, DownloadStopped."""
        with named_disk_faults(wanted.path):
            wanted.path.parent.mkdir(parents=True, exist_ok=True)
            for fresh in (False, True):
                digest = self._received_whole(wanted)
                fault = _fault(wanted, digest)
                if not fault:
                    break
                # Damaged on the way, or the part was of something else: once more from the beginning.
                _discard(wanted)
                if fresh:
                    raise PrepareError(f"{shown(wanted.url)}: {fault}; what came was deleted{wanted.if_changed}")
                self._say(f"{wanted.path.name}: {fault}; fetching it again from the beginning")
            put_in_place(wanted.part, wanted.path)
            wanted.note.unlink(missing_ok=True)
        return digest.sha256

    def _received_whole(self, wanted: FileToFetch) -> Digest:
        """The same as `_fetch_part`; where nothing came, nothing is left."""
        try:
            return self._fetch_part(wanted)
        except BaseException:
            if wanted.part.exists() and not wanted.part.stat().st_size:
                _discard(wanted)
            raise

    def _fetch_part(self, wanted: FileToFetch) -> Digest:
        """Bring the part to its full size."""
        import httpx

        self._go_on()
        failures, wait = 0, 1.0
        part = _opened(wanted)
        while not part.whole:
            before = part.have
            try:
                if self._receive(wanted, part):
                    break
                fault = f"the connection ended after {part.have} bytes"
            except (httpx.TransportError, httpx.StreamError, _Again) as error:
                fault = f"{type(error).__name__.lstrip('_')}: {error}"
            if part.have > before:
                failures, wait = 0, 1.0
            failures += 1
            if failures >= ATTEMPTS:
                raise SourceUnavailable(
                    f"{shown(wanted.url)} did not answer in {ATTEMPTS} attempts ({fault}); is the network up, or "
                    "a proxy to be named (HTTPS_PROXY)? The same command goes on where this one ended"
                )
            self.pause(wait)
            self._go_on()
            wait = min(2 * wait, LONGEST_WAIT)
        return part.digest

    def _receive(self, wanted: FileToFetch, part: _Part) -> bool:
        """One request; whether the part is whole after it."""
        with self._client.stream("GET", wanted.url, headers=_headers(wanted, part)) as answer:
            _refuse(answer, wanted)
            if answer.status_code == 416:
                _restart(wanted, part)
                raise _Again("the part that was there is longer than the file")
            goes_on = answer.status_code == 206
            total = _total(answer, wanted, part.have if goes_on else 0)
            version = _version(answer)
            if not goes_on:
                _restart(wanted, part)
            elif wanted.checksum is None and version != part.version:
                _restart(wanted, part)
                raise _Again("the file is another one than when it was begun")
            part.version, part.total = version, total
            _write_note(wanted, part)
            with wanted.part.open("ab") as file:
                for block in answer.iter_raw():  # as they come: what is gathered first would be lost by a cut
                    self._keep(block, file, part)
        return part.whole or total is None

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise DownloadStopped

    def _keep(self, block: bytes, file: BinaryIO, part: _Part) -> None:
        self._go_on()
        file.write(block)
        file.flush()
        part.digest.update(block)
        part.have += len(block)
        self._received(len(block))


class _Again(Exception):
    """This attempt brought nothing that can be used; the next one may."""


def _opened(wanted: FileToFetch) -> _Part:
    """What an earlier fetch left, if it is of this file and can be gone on with."""
    note = _read_note(wanted)
    sound = note.get("url") == url_key(wanted.url)
    # Without a version or a checksum nothing would tell that the file changed between two fetches.
    sound = sound and bool(note.get("version") or wanted.checksum)
    total = note.get("total")
    part = _Part(0, Digest(wanted.git_size), wanted.size or (total if isinstance(total, int) else None))
    there = 0
    if wanted.part.exists():
        there = wanted.part.stat().st_size
    if not sound or (part.total is not None and there > part.total):
        _restart(wanted, part)
        return part
    wanted.part.touch()
    part.have, part.version = there, str(note.get("version", ""))
    if there:
        part.digest = digest_of(wanted.part, wanted.git_size)
    return part


def _headers(wanted: FileToFetch, part: _Part) -> dict[str, str]:
    headers = dict(wanted.headers)
    if part.have:
        headers["Range"] = f"bytes={part.have}-"
        if part.version and wanted.checksum is None:
            headers["If-Range"] = part.version
    return headers


def _refuse(answer: httpx.Response, wanted: FileToFetch) -> None:
    refused = refusal(answer.status_code, wanted.url)
    if refused is not None:
        raise refused
    if answer.status_code not in (200, 206, 416):
        raise _Again(f"it answers {answer.status_code}")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise PrepareError(f"{shown(wanted.url)} sends the file compressed, though it was asked not to")
    is_page = answer.headers.get("content-type", "").startswith("text/html")
    if is_page and wanted.checksum is None and not wanted.path.name.endswith((".html", ".htm")):
        raise SourceUnavailable(
            f"{shown(wanted.url)} answers with a web page instead of the file: look at it in a browser"
        )


def _total(answer: httpx.Response, wanted: FileToFetch, have: int) -> int | None:
    """Bytes of the whole file, by the server. Raises PrepareError where they are not those it must have."""
    total: int | None = None
    if answer.status_code == 206:
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != have:
            raise _Again(f"the server sent another range than from {have} on")
        total = None
        if found[2] != "*":
            total = int(found[2])
    elif answer.status_code == 200 and "content-length" in answer.headers:
        total = int(answer.headers["content-length"])
    if total is not None and wanted.size is not None and total != wanted.size:
        raise PrepareError(f"{shown(wanted.url)} has {total} bytes; it must have {wanted.size}")
    if total is None:
        return wanted.size
    return total


def _version(answer: httpx.Response) -> str:
    """By what the server tells one version of a file from another."""
    tag = str(answer.headers.get("etag", ""))
    if tag.startswith('"'):
        return tag
    return str(answer.headers.get("last-modified", ""))


def _fault(wanted: FileToFetch, digest: Digest) -> str:
    """Why what came is not the file; empty when it is."""
    have = wanted.part.stat().st_size
    if wanted.size is not None and have != wanted.size:
        return f"it has {have} bytes and must have {wanted.size}"
    if wanted.checksum is None:
        return ""
    found = digest.of_kind(wanted.checksum.kind)
    if found != wanted.checksum.value:
        return f"its {wanted.checksum.kind} is {found} and must be {wanted.checksum.value}"
    return ""


def _restart(wanted: FileToFetch, part: _Part) -> None:
    wanted.part.write_bytes(b"")
    part.have, part.digest, part.total, part.version = 0, Digest(wanted.git_size), wanted.size, ""


def _discard(wanted: FileToFetch) -> None:
    wanted.part.unlink(missing_ok=True)
    wanted.note.unlink(missing_ok=True)


def _write_note(wanted: FileToFetch, part: _Part) -> None:
    note = {"url": url_key(wanted.url), "version": part.version, "total": part.total}
    put_json(wanted.note, note, durable=False)


def _read_note(wanted: FileToFetch) -> dict[str, Any]:
    return object_or_nothing(wanted.note)
