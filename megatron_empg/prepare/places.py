"""Where a file is published: a URL, or ``hub:OWNER/NAME[@REVISION][:FILE]`` on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from megatron_empg.prepare.errors import PrepareError

Kind = Literal["model", "dataset"]
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(rf"hub:(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]{{1,200}}))?(?::(?P<file>.+))?")
_SHORT = re.compile(rf"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub, and perhaps one of its files."""

    repository: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        file = ""
        if self.file:
            file = f":{self.file}"
        return f"hub:{self.repository}@{self.revision}{file}"

    @property
    def key(self) -> str:
        """Identifies the place to a later run."""
        return str(self)


@dataclass(frozen=True)
class UrlPlace:
    """Anything that answers HTTP."""

    url: str

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def key(self) -> str:
        """Identifies the place to a later run."""
        return url_key(self.url)


Place = HubPlace | UrlPlace


def read_place(text: str) -> Place:
    """The place that `text` names; a bare OWNER/NAME is one of the hub. Raises PrepareError."""
    found = _HUB.fullmatch(text)
    if found is not None:
        file = found["file"]
        return HubPlace(found["repository"], found["revision"] or "main", file and safe_name(file))
    if text.startswith(("https://", "http://")):
        if not is_url(text):
            without_password = re.sub("//[^/]*@", "//", text)
            raise PrepareError(
                f"{without_password!r} is not a place to fetch from: it names no host, or a port that is not a "
                "number; give http(s)://HOST/PATH"
            )
        return UrlPlace(text)
    if _SHORT.fullmatch(text):
        return HubPlace(text)
    raise PrepareError(f"{text!r} is not a place to fetch from; give a URL, or hub:OWNER/NAME[@REVISION][:FILE]")


def safe_name(name: str) -> str:
    """A file's path inside a repository, which must stay inside a folder here. Raises PrepareError."""
    parts = PurePosixPath(name).parts
    outside = name.startswith(("/", "~")) or ".." in parts or not parts
    if outside or "\\" in name or ":" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise PrepareError(f"the file name {name!r} is refused: it would lie outside of the folder it belongs to")
    return str(PurePosixPath(name))


def file_name(place: Place) -> str:
    """What a file of this place is called here. Raises PrepareError for a place that names no file."""
    if isinstance(place, HubPlace):
        path = place.file or ""
    else:
        path = unquote(urlsplit(place.url).path)
    name = path.rpartition("/")[2]
    if not name:
        raise PrepareError(f"{place} names no file; add its name")
    return safe_name(name)


def is_url(text: str) -> bool:
    """Whether it is an address of HTTP that names a host."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def url_key(url: str) -> str:
    """What tells a URL from others, its query too, which may hold a secret and so is written as a digest."""
    query = urlsplit(url).query
    if not query:
        return shown(url)
    return f"{shown(url)}?{hashlib.sha256(query.encode()).hexdigest()[:16]}"


def shown(url: str) -> str:
    """A URL as logs may have it: without user, password and query, where secrets live."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = ""
    if parts.port:
        port = f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path}"
