"""What the log of a process that has ended says of why: its end, and the error that all else follows from."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 1000
"""Characters of an error that are shown."""

_ERROR = re.compile(
    r"^(?:\([^)\n]*\) +)?"  # (EngineCore pid=4970): vLLM's, and a rank's
    r"(?:ERROR [^\]\n]*\] +)?"  # ERROR 11-26 16:20:20 [core.py:1510]: vLLM's
    r"((?:error: \S|(?:\w+\.)*[A-Z]\w*(?:Error|Exception)(?:: \S|$)).*)$",
    re.MULTILINE,
)


def why(path: Path, lines: int = 25) -> str:
    """The last lines of the log, and before them the first error where it stands further up: programs of several
    processes, vLLM for one, end with no more than where to look."""
    text = path.read_text(encoding="utf-8", errors="replace")
    end = "\n".join(text.splitlines()[-lines:])
    first = first_error(text)
    if first is None or first in end:
        return f"end of {path}:\n{end}"
    return f"the first error in {path}:\n{first}\nits end:\n{end}"


def first_error(text: str) -> str | None:
    """The first line that names an exception, without what a logger puts before it."""
    found = _ERROR.search(text)
    if found is None:
        return None
    return found.group(1).rstrip()[:LONGEST]
