"""tools/style_check.py: what it counts; a dense snippet is above every ceiling, and the package is not."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from style_check import CEILINGS, TARGET, Density, faults, packages, read

ROOT = Path(__file__).resolve().parents[2]

PLAIN = '''
"""A docstring."""
import os


def mean(values: list[float]) -> float:
    """The mean of the values."""
    total = sum(values)
    return total / len(values)
'''

DENSE = """
def best(runs, key=None, *, least=0):
    return max(
        (run for run in runs if (found := (key or (lambda each: each.score if each.done else 0))(run)) > least),
        key=lambda run: sum(step.reward for step in run.steps if not step.failed) / (len(run.steps) or 1),
        default={name: [value for value in group if value] for name, group in runs[0].items()} if runs else None,
    )
"""


def density_of(text: str, folder: Path) -> Density:
    file = folder / "snippet.py"
    file.write_text(text, encoding="utf-8")
    return read([file]).density


def test_imports_and_docstrings_are_no_statements(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text(PLAIN, encoding="utf-8")
    statements = read([file]).statements
    assert [statement.line for statement in statements] == [6, 8, 9]
    # `total = sum(values)` is an assignment, a name, a call and two names in it.
    assert statements[1].nodes == 5


def test_each_packed_expression_is_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "packed.py"
    file.write_text("a = [x for x in y]\nb = 1 if a else 2\nc = lambda: 0\n(d := 3)\n", encoding="utf-8")
    assert [statement.packed for statement in read([file]).statements] == [1, 1, 1, 1]


def test_a_statement_does_not_count_those_inside_it(tmp_path: Path) -> None:
    inner = "    x = [a for a in b if a]\n"
    once = density_of("if ready:\n" + inner, tmp_path)
    often = density_of("if ready:\n" + inner * 9, tmp_path)
    assert often.p95 == once.p95
    assert once.packed == 50


def test_plain_code_is_below_the_target(tmp_path: Path) -> None:
    assert faults("plain", density_of(PLAIN, tmp_path), TARGET) == []


def test_a_dense_snippet_is_above_every_ceiling(tmp_path: Path) -> None:
    density = density_of(DENSE, tmp_path)
    for name, ceiling in CEILINGS.items():
        found = faults(name, density, ceiling)
        assert [fault.split()[1] for fault in found] == ["packed", "p95", "large"], name
    assert "snippet: packed is 450, above its ceiling 7" in faults("snippet", density, TARGET)


def test_a_function_longer_than_a_screen_is_named(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    shown = "def shown():\n" + "    pass\n" * 49
    hidden = "def hidden():\n" + "    pass\n" * 50
    file.write_text(f"{shown}\n\n{hidden}", encoding="utf-8")
    assert read([file]).long_functions == [f"{file}:53 hidden (51 lines)"]


def test_files_without_a_statement_are_no_measurement() -> None:
    with pytest.raises(ValueError, match="no statement was read"):
        assert read([]).density


def test_every_package_has_a_ceiling_and_none_is_left_of_a_package_that_is_gone() -> None:
    assert sorted(CEILINGS) == sorted(packages())


def test_the_check_says_what_to_do_and_the_package_passes_it() -> None:
    words = [sys.executable, "tools/style_check.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(figure.name in done.stdout.splitlines()[0] for figure in fields(Density))
    listed = subprocess.run([*words, "--densest", "cli"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.startswith("megatron_empg/cli/")
