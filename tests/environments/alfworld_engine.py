"""ALFWorld's Python and games that it made, for the tests of its engine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from megatron_empg.environments.alfworld.python import engine_python
from megatron_empg.environments.alfworld.source import AlfWorld
from tests.environments.needed import needs

ROOT = Path(__file__).resolve().parents[2]


def python_with_engine() -> Path:
    """The interpreter, or why it is not here."""
    try:
        found = engine_python(None)
    except ValueError as error:
        needs(False, "ALFWorld's engine", str(error))
        raise
    assert found is not None, "the tests' own Python has no engine"
    return found


def run_engine(*words: str | Path, hash_seed: str = "0", check: bool = True) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in ALFWorld's Python, which finds this package."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [python_with_engine(), *words], env=variables, capture_output=True, encoding="utf-8", check=False
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def generate(folder: Path, **counts: int | str) -> subprocess.CompletedProcess[str]:
    """The command, with so many games of each split and none of the others."""
    given = {"train": 0, "test_id": 0, "test_ood": 0, "processes": 2} | counts
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return run_engine("-m", "megatron_empg.environments.alfworld.generate", folder, *words)


def source_of(folder: Path, **settings: object) -> AlfWorld:
    """With the 50 turns of the field's comparisons."""
    from megatron_empg.environments.registry import make_task_source

    source = make_task_source("alfworld", max_turns=50, data=folder, **settings)
    assert isinstance(source, AlfWorld)
    return source
