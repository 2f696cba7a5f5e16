"""The Hugging Face hub's own interface: which commit a revision is, and its files with their checksums."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from megatron_empg.prepare.checksums import Checksum
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.places import HubPlace, Kind, safe_name, shown
from megatron_empg.prepare.web import endpoint, hub_headers, refusal

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """One file of a commit. Large ones have a sha256, small ones git's checksum."""

    name: str
    url: str
    size: int
    checksum: Checksum


class Hub:
    """Reads repositories. `pause` is what waits before another attempt."""

    def __init__(self, client: httpx.Client, pause: Callable[[float], object] = time.sleep) -> None:
        self._client = client
        self._pause = pause

    def commit(self, place: HubPlace, kind: Kind) -> str:
        """The commit that the place's revision is now. Raises PrepareError."""
        url = f"{endpoint()}/api/{kind}s/{place.repository}/revision/{quote(place.revision, safe='')}"
        answer = self._ask(url).json()
        commit = None
        if isinstance(answer, dict):
            commit = answer.get("sha")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise PrepareError(f"the hub names no commit of {place}")
        return commit

    def files(self, place: HubPlace, kind: Kind, commit: str) -> list[HubFile]:
        """All files of a commit. Raises PrepareError, also for a name that leads out of its folder."""
        files = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{place.repository}/resolve/{commit}"
        found = []
        for entry in self._entries(f"{endpoint()}/api/{kind}s/{place.repository}/tree/{commit}?recursive=true"):
            if entry.get("type") != "file":
                continue
            name = safe_name(str(entry.get("path", "")))
            large = entry.get("lfs")
            checksum = Checksum("git", str(entry.get("oid")))
            size = entry.get("size")
            if isinstance(large, dict):
                checksum = Checksum("sha256", str(large.get("oid")).removeprefix("sha256:"))
                size = large.get("size", size)
            if not isinstance(size, int):
                raise PrepareError(f"the hub tells no size of {name} in {place}")
            found.append(HubFile(name, f"{files}/{quote(name)}", size, checksum))
        return found

    def _entries(self, url: str) -> Iterator[dict[str, Any]]:
        """Of every page of a listing."""
        next_page: str | None = url
        while next_page:
            answer = self._ask(next_page)
            entries = answer.json()
            if not isinstance(entries, list):
                raise PrepareError(f"{shown(next_page)} is not a listing of files")
            yield from (entry for entry in entries if isinstance(entry, dict))
            next_page = answer.links.get("next", {}).get("url")
            if next_page and not next_page.startswith(f"{endpoint()}/"):
                raise PrepareError("the hub's listing goes on at another host, which is not followed")

    def _ask(self, url: str) -> httpx.Response:
        import httpx

        wait = 1.0
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(wait)
                wait *= 2
            try:
                answer = self._client.get(url, headers=hub_headers())
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            refused = refusal(answer.status_code, url)
            if refused is not None:
                raise refused
            if answer.is_success:
                return answer
            fault = f"it answers {answer.status_code}"
        raise SourceUnavailable(f"{shown(url)} did not answer in {ATTEMPTS} attempts: {fault}")
