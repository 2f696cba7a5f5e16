"""What an index folder says of itself; it is written last, so a folder that has it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_empg.environments.deep_search.search.errors import IndexFolderError

MANIFEST = "manifest.json"
VERSION = 1
_KIND = "megatron_empg search index"


@dataclass(frozen=True)
class Manifest:
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

    def settings(self) -> dict[str, Any]:
        """What the same source would be indexed with."""
        return {"k1": self.k1, "b": self.b, "stop_words": self.stop_words}

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder that has everything else."""
        content = {"kind": _KIND, "version": VERSION, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
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
    def _checked(cls, path: Path, content: dict[str, Any]) -> Manifest:
        wrong = {field.name for field in fields(cls)} ^ set(content)
        if wrong:
            raise IndexFolderError(f"{path}: {', '.join(sorted(wrong))} missing or unknown; build the index again")
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
        for field in fields(cls):
            value = content[field.name]
            if not isinstance(value, kinds[str(field.type)]) or isinstance(value, bool):
                raise IndexFolderError(f"{path}: {field.name} is {value!r:.40}; build the index again")
        return cls(**content)
