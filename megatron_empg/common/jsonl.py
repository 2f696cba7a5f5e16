"""Files of one JSON object a line, appended while a run goes on and cut back when it resumes."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_empg.common.files import put_text


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line and bring it to disk. A number that is not finite is written as null: JSON has none."""
    line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode("utf-8", errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where it is missing. A line torn by a kill is left out."""
    if not path.exists():
        return []
    records = []
    # Not splitlines(): it also splits at separators such as U+2028 that JSON leaves inside a string.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # also an integer of thousands of digits, and brackets without end
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


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
