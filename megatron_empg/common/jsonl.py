"""Files of one JSON object a line, appended while a run goes on and cut back when it resumes."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from megatron_empg.common.files import put_text
from megatron_empg.common.json_files import JsonFileError

LARGEST = 1e100
"""No measurement is larger; sums, means and axes of larger numbers overflow."""
MOST_DIGITS = 100
"""Of a whole number, which is at most `LARGEST` then."""
LARGEST_STEP = 2**53
"""Up to it a float, which charts are made of, holds every whole number."""


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line and bring it to disk. A number that is not finite is written as null: JSON has none.

    A line that a kill has torn is ended first, so that it harms no other.
    """
    line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("a+b") as file:
        if _ends_torn(file):
            file.write(b"\n")
        file.write(line.encode("utf-8", errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def _ends_torn(file: IO[bytes]) -> bool:
    """Whether the last line of a file has no end."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where it is missing. A line without one (`record_of`) is left out.

    Raises JsonFileError where a folder is in the file's place.
    """
    if path.is_dir():
        raise JsonFileError(f"{path} is a folder, where a file of JSON lines belongs: move it away")
    if not path.exists():
        return []
    records = []
    # Not splitlines(): it also splits at separators such as U+2028 that JSON leaves inside a string.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        record = record_of(line)
        if record is not None:
            records.append(record)
    return records


def record_of(line: str) -> dict[str, Any] | None:
    """The record of a line; None for a line torn by a kill, and for one that does not hold a JSON object.

    A number that is not finite or beyond `LARGEST` is None in it, as `append_line` writes it.
    """
    try:
        record = json.loads(line, **_READERS)
    except (ValueError, RecursionError):  # RecursionError: brackets without end
        return None
    if not isinstance(record, dict):
        return None
    return record


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if type(value) not in (int, float):  # True is an int to isinstance
        return None
    fits = abs(value) <= LARGEST  # which nan does not
    return float(value) if fits else None


def step_of(record: Mapping[str, Any]) -> int | None:
    """The training step that a record is of; None where it names none."""
    step = record.get("step")
    if type(step) is not int:
        return None
    fits = 0 <= step <= LARGEST_STEP
    return step if fits else None


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file with the records for which ``keep`` is true, torn lines removed."""
    if path.exists():
        kept = [record for record in read_lines(path) if keep(record)]
        put_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _float(digits: str) -> float | None:
    return number(float(digits))


def _int(digits: str) -> int | None:
    if len(digits) > MOST_DIGITS:
        return None
    return int(digits)


def _not_finite(_: str) -> None:
    return None


_READERS: dict[str, Any] = {"parse_float": _float, "parse_int": _int, "parse_constant": _not_finite}
"""How json reads numbers."""
