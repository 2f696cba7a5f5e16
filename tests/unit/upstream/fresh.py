"""Runs cases each in a process of its own, forked from one that has imported what takes seconds, patching nothing.

A case is a function ``case_NAME`` of a module. It returns what a user would see without the entry NAME of
`megatron_empg.upstream`, and "" where nothing is seen. The module's ``prepare`` imports for all cases but those
that its ``EARLY`` names, which run before.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PREFIX = "case_"
_MARK = "OUTCOMES "


@dataclass(frozen=True)
class Outcome:
    """What a case met. Example: ``Outcome("NameError: name 'te_general_gemm' is not defined", "")``."""

    symptom: str
    fault: str
    """Why the case could not be tried, a traceback; nothing if it was."""


def outcomes(module: str) -> dict[str, Outcome]:
    """Of every case of a module of this folder, by the entry's name."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, "-m", "tests.unit.upstream.fresh", module],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        timeout=600,
        check=False,
    )
    last = process.stdout.splitlines()[-1:]
    if process.returncode or not last or not last[0].startswith(_MARK):
        raise AssertionError(f"{module} ended with {process.returncode}:\n{process.stdout}\n{process.stderr}")
    found = json.loads(last[0].removeprefix(_MARK))
    return {name: Outcome(**outcome) for name, outcome in found.items()}


def cases_of(module: object) -> dict[str, Callable[[], str]]:
    """The cases of a module by the entry's name."""
    return {name.removeprefix(PREFIX): case for name, case in vars(module).items() if name.startswith(PREFIX)}


def _forked(case: Callable[[], str]) -> dict[str, str]:
    """What the case says, from a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(_tried(case), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        return {"symptom": "", "fault": "the case's process ended without a word"}
    outcome: dict[str, str] = json.loads(said)
    return outcome


def _tried(case: Callable[[], str]) -> dict[str, str]:
    try:
        with redirect_stdout(io.StringIO()):
            return {"symptom": case(), "fault": ""}
    except BaseException:
        return {"symptom": "", "fault": traceback.format_exc()}


def main() -> None:
    module = importlib.import_module(f"{__package__}.{sys.argv[1]}")
    cases = cases_of(module)
    found = {name: _forked(cases.pop(name)) for name in module.EARLY}
    module.prepare()
    found.update({name: _forked(case) for name, case in cases.items()})
    print(_MARK + json.dumps(found), flush=True)
    os._exit(0)  # threads of what was imported must not hold the test


if __name__ == "__main__":
    main()
