"""What an index folder says of itself; it is written last, so a folder that has it is whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_empg.environments.deep_search.search.errors import IndexFolderError

MANIFEST = "manifest.json"
VERSION = 2
_KIND = "megatron_empg search index"
_MOST = 2**63
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class IndexManifest:
    """Counts, the source, and the settings that queries must share with documents."""

    source: str
    source_sha256: str
    documents: int
    titles: int
    continued: int
    """Documents under the title of the one before: further passages of one page."""
    repeated: int
    """Runs of documents whose title stood earlier; visits show the first."""
    words: int
    """Different ones."""
    postings: int
    k1: float
    b: float
    stop_words: str
    files: dict[str, str]
    """SHA-256 of the other files of the folder, by name. Only `verify_files` compares them."""

    def settings(self) -> dict[str, Any]:
        """What the same source would be indexed with."""
        return {"k1": self.k1, "b": self.b, "stop_words": self.stop_words}

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder that has everything else."""
        content = {"kind": _KIND, "version": VERSION, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> IndexManifest:
        """Raises IndexFolderError."""
        path = Path(folder) / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise IndexFolderError(f"no index at {folder}; build one: empg index CORPUS {folder}") from None
        except (OSError, ValueError) as error:
            raise IndexFolderError(f"{path} cannot be read ({error}); build the index again") from error
        if not isinstance(content, dict) or content.pop("kind", None) != _KIND:
            raise IndexFolderError(f"{path} is not of a search index; give a folder that `empg index` wrote")
        version = content.pop("version", None)
        if version != VERSION:
            raise IndexFolderError(f"{path} is of version {version}, this program reads {VERSION}; build it again")
        return cls._checked(path, content)

    @classmethod
    def _checked(cls, path: Path, content: dict[str, Any]) -> IndexManifest:
        wrong = {field.name for field in fields(cls)} ^ set(content)
        if wrong:
            raise IndexFolderError(f"{path}: {', '.join(sorted(wrong))} missing or unknown; build the index again")
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
        kinds["dict[str, str]"] = (dict,)
        for field in fields(cls):
            value = content[field.name]
            wrong_kind = not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool)
            if wrong_kind or (isinstance(value, int) and not 0 <= value < _MOST):
                raise IndexFolderError(f"{path}: {field.name} is {value!r:.40}; build the index again")
        for name, digest in content["files"].items():
            of_folder = name == Path(name).name and "\0" not in name
            if not of_folder or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise IndexFolderError(f"{path}: files has {name!r:.40}: {digest!r:.80}; build the index again")
        return cls(**content)


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but its manifest, by name. Reads them whole. Raises OSError."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {name: file_digest(folder / name) for name in names}


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(folder: Path, progress: Callable[[str], object] = lambda name: None) -> IndexManifest:
    """Read an index folder whole and compare every file with the checksum that the manifest has of it.

    `progress` is told each file's name before it is read. Raises IndexFolderError naming all files that are not
    what was built. Vectors are `dense.verify_vectors`'s.
    """
    folder = Path(folder)
    manifest = IndexManifest.read(folder)
    faults = []
    for name, digest in manifest.files.items():
        progress(name)
        faults.append(_fault(folder / name, digest))
    faults = list(filter(None, faults))
    if faults:
        raise IndexFolderError(f"{folder}: {'; '.join(faults)}: remove the folder and build the index again")
    return manifest


def _fault(path: Path, digest: str) -> str:
    """What is wrong with a file; empty where nothing is."""
    try:
        found = file_digest(path)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if found == digest:
        return ""
    return f"{path.name} is not the file that was built (SHA-256 {found}, not {digest})"
