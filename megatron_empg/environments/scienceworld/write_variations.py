"""Write the record of tasks and variations anew, by asking the engine: for another version of it.

python -m megatron_empg.environments.scienceworld.write_variations FILE
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_empg.common.errors import told_plainly
from megatron_empg.common.options import parse_command_line
from megatron_empg.environments.scienceworld.java_installation import VERSION, installed
from megatron_empg.environments.scienceworld.java_process import JavaProcess
from megatron_empg.environments.scienceworld.variations import PARTS, Part

TIMEOUT = 600.0


class EngineTaskReader:
    """What the engine says of its tasks. No world is built for it, which would take hours."""

    def __init__(self, process: JavaProcess) -> None:
        self._process = process
        self._simulator: Any = process.call(process.java.scienceworld.runtime.pythonapi.PythonInterface)
        # Scala's one generator of random numbers, which the engine seeds by a variation's number.
        self._random: Any = getattr(getattr(process.java.scala.util, "Random$"), "MODULE$")

    def tasks(self) -> dict[str, dict[str, Any]]:
        """{name: its fields in the file}."""
        names = self._process.lines(self._simulator.getTaskNames)
        parts = {name: self._parts(name) for name in names}
        goals: dict[str, list[str]] = {name: [] for name in names}
        for number in range(max(_end(found) for found in parts.values())):
            maker = self._maker(number)
            for name in names:
                if number < _end(parts[name]):
                    goals[name].append(self._goal(maker, name, number))
            self._process.forget(maker)
        return {name: _fields(parts[name], goals[name]) for name in names}

    def _parts(self, name: str) -> dict[Part, range]:
        # A Scala variable's setter; the parts are those of the task that was loaded.
        self._process.call(getattr(self._simulator, "taskStr_$eq"), name)
        return {
            "train": self._numbers(self._simulator.getVariationsTrain),
            "dev": self._numbers(self._simulator.getVariationsDev),
            "test": self._numbers(self._simulator.getVariationsTest),
        }

    def _numbers(self, method: Callable[[], Any]) -> range:
        # Java shows a list of numbers as JSON has it.
        return _range(json.loads(self._process.call(self._process.call(method).toString)))

    def _maker(self, number: int) -> Any:
        """What makes the tasks of this number. Some of them shuffle what they ask about as they are made."""
        self._process.call(self._random.setSeed, number)
        return self._process.call(self._process.java.scienceworld.tasks.TaskMaker1)

    def _goal(self, maker: Any, name: str, number: int) -> str:
        call = self._process.call
        call(self._random.setSeed, number)
        found = call(maker.getTask, name)
        kind = call(found.get)
        task = call(kind.setupGoals, number)
        goal = str(call(task.description)).strip()
        for one in (found, kind, task):  # they hold the whole maker
            self._process.forget(one)
        return goal


def _end(parts: dict[Part, range]) -> int:
    return max(part.stop for part in parts.values())


def _fields(parts: dict[Part, range], goals: Sequence[str]) -> dict[str, Any]:
    begins = _common_beginning(goals)
    ends = _common_beginning([goal[len(begins) :][::-1] for goal in goals])[::-1]
    between = [goal[len(begins) : len(goal) - len(ends)] for goal in goals]
    numbers: dict[str, Any] = {part: [parts[part].start, parts[part].stop] for part in PARTS}
    return numbers | {"begins": begins, "ends": ends, "between": between}


def _common_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((place for place, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)
    if length is None:
        return first
    return first[:length]


def _range(found: Sequence[int]) -> range:
    """The numbers, which are without gaps. Raises ValueError if they are not."""
    if found:
        made = range(found[0], found[-1] + 1)
    else:
        made = range(0)
    if list(made) != found:
        raise ValueError(
            f"the engine's variations of a part are {found}: they have gaps, which the file cannot say"
        )
    return made


@dataclass(frozen=True)
class VariationArguments:
    """Make the file of all tasks anew, from the installed engine."""

    file: Annotated[Path, typer.Argument(help="What to write.")]


def main() -> None:
    path = parse_command_line(VariationArguments).file
    process = JavaProcess(installed(), TIMEOUT)
    try:
        tasks = EngineTaskReader(process).tasks()
    finally:
        process.kill()
    text = json.dumps({"version": VERSION, "tasks": tasks}, ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


if __name__ == "__main__":
    with told_plainly():
        main()
