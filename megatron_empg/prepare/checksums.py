"""Checksums of files: the sha256 that publishers and the hub's large files have, git's for its small ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BLOCK = 1 << 22


@dataclass(frozen=True)
class Checksum:
    """`git` is the id that git gives a file's content: a sha1 with the size in front."""

    kind: Literal["sha256", "git"]
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


class Digest:
    """The sha256 of what is written, as it is written; git's too where the `git_size` of the whole is given."""

    def __init__(self, git_size: int | None = None) -> None:
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(f"blob {git_size}\0".encode(), usedforsecurity=False)
        self._wants_git = git_size is not None

    def update(self, data: bytes) -> None:
        self._sha256.update(data)
        if self._wants_git:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def of_kind(self, kind: str) -> str:
        if kind == "sha256":
            return self.sha256
        return self._git.hexdigest()


def digest_of(path: Path, git_size: int | None = None) -> Digest:
    """The digest of a file on disk; `git_size` is as in `Digest`."""
    digest = Digest(git_size)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest
