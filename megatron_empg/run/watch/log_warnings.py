"""The last warnings and errors in a run's logs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_empg.run.watch.file_times import changed_at

TAIL_BYTES = 64 << 10
"""Of each log, which may have grown for days."""
LONGEST_LINE = 300
_WORTH_TELLING = re.compile(
    r"\b(?:WARNING|ERROR|CRITICAL|FATAL)\b|\b(?:warning|error):|\b\w+(?:Error|Exception): "
)
_OLDER = re.compile(r"\.\d+\.log$")
"""NAME.1.log is of the start before the last one."""
_ATTEMPT = re.compile(r".+\.\d+")
"""A Slurm job's logs are in a folder JOB.NUMBER for each start, others' folders have other names."""
PLAN = "plan.json"
"""Written there at the begin of a start, and by nobody later."""
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]")
_PROCESS = re.compile(r"^\([^()]*pid=\d+\)\s*")
"""vLLM begins each line with the process that writes it."""
_NUMBERS = re.compile(r"\d+")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class LogLine:
    """A line, and the log it stands in without its ending; "engine_0" for one."""

    log: str
    text: str


def last_warnings(logs: Path, most: int) -> Sequence[LogLine]:
    """The last lines that warn, those of the log that was written to last at the end.

    `logs`: a run's folder of logs. Of Slurm jobs' logs those of the newest start are read, beside all others.
    Of lines with the same head, such as a traceback's, the last one stands for all.
    """
    found: dict[str, LogLine] = {}
    for path in _by_age(logs):
        for line in tail(path):
            if _WORTH_TELLING.search(line):
                said = _PROCESS.sub("", line)
                head = f"{path.stem}: {_NUMBERS.sub('0', _head(said))}"
                found.pop(head, None)  # what is said again stands where it was said last
                found[head] = LogLine(path.stem, said)
    if not most:
        return []
    return list(found.values())[-most:]


def newest_change(logs: Path) -> float:
    """When a log was written to last, in seconds since 1970; 0 without one."""
    return max((changed_at(path) for path in _paths(logs)), default=0.0)


def tail(path: Path) -> list[str]:
    """The last whole lines, without what would move a terminal's cursor or colour it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            content = file.read(TAIL_BYTES)
    except OSError:
        return []
    lines = content.decode("utf-8", errors="replace").splitlines()
    if size > TAIL_BYTES:
        lines = lines[1:]
    return [plain(line)[:LONGEST_LINE] for line in lines if line.strip()]


def plain(line: str) -> str:
    """The line's letters alone."""
    return _UNPRINTABLE.sub("", _ESCAPE.sub("", line)).strip()


def _head(line: str) -> str:
    """Up to the place in the source, as "ERROR 11-27 06:52:57 [core.py:9]"; the whole line where it names none."""
    head, bracket, _ = line.partition("]")
    if bracket and "[" in head and len(head) < 80:
        return head
    return line


def _by_age(logs: Path) -> list[Path]:
    paths = [path for path in _paths(logs) if path.parent != logs or not _OLDER.search(path.name)]
    return sorted(paths, key=changed_at)


def _paths(logs: Path) -> list[Path]:
    """NAME.log of this machine's processes, and NAME.NODE.TASK.log of a Slurm job's newest start."""
    paths = list(logs.glob("*.log"))
    newest = _newest_attempt(logs)
    if newest is None:
        return paths
    return [*paths, *newest.glob("*.log")]


def _newest_attempt(logs: Path) -> Path | None:
    """The folder of a Slurm job's newest start; None where there was no job."""
    begun = [plan for plan in logs.glob(f"*/{PLAN}") if _ATTEMPT.fullmatch(plan.parent.name)]
    if not begun:
        return None
    return max(begun, key=changed_at).parent
