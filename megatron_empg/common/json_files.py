"""JSON files of keys and values: read as UTF-8, with every fault named by file and line."""

import json
from pathlib import Path
from typing import Any

from megatron_empg.common.errors import EmpgError


class JsonFileError(EmpgError, ValueError):
    """A file that is not what it should be; the message names the file, and the line where there is one."""

    exit_code = 2


def read_object(path: Path) -> dict[str, Any]:
    """The keys of a JSON file. Raises JsonFileError."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise JsonFileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise JsonFileError(f"{path}, line {line}: not UTF-8") from None
    except json.JSONDecodeError as error:
        what = "the file is empty"
        if error.doc.strip():
            what = f"not JSON: {error.msg}"
        raise JsonFileError(f"{path}, line {error.lineno}, column {error.colno}: {what}") from None
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise JsonFileError(f"{path} holds {_name(content)} instead of keys and values")
    return content


def object_or_nothing(path: Path) -> dict[str, Any]:
    """The keys of a JSON file; none where it is missing, torn or no such file."""
    try:
        return read_object(path)
    except JsonFileError:
        return {}


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write keys as UTF-8, readable by people."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _name(content: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(content), repr(content))
