"""`empg table` from the command line: what is printed, and what is refused with one message."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.cli.table import table
from megatron_empg.report.table.errors import TableError
from megatron_empg.report.table.published import published
from tests.support.table_runs import recipe_of, write_run

USAGE = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two seeds with EMPG and without."""
    root = tmp_path_factory.mktemp("runs")
    folders = []
    for modulation, gained in (("none", 0.0), ("empg", 0.1)):
        for seed in (1, 2):
            recipe = recipe_of(seed=seed, modulation=modulation)
            figures = {"test_id/sampled": 0.5 + 0.05 * seed + gained}
            folders.append(str(write_run(root / f"{modulation}-{seed}", recipe, figures)))
    return folders


def test_one_command_shows_our_numbers_beside_the_papers(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["table", *runs])
    assert done.exit_code == 0, done.output
    assert "GRPO + EMPG" in done.output
    assert "73.7" in done.output
    assert "Against the plain algorithm, same seeds:" in done.output
    assert "Not comparable with EMPG (arXiv 2509.09265), by line, because of:" in done.output


def test_another_paper_may_be_asked_for(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["table", "--paper", "arlarena", *runs])
    assert "Qwen3-4B-RFT" in done.output
    assert "2509.09265" not in done.output


def test_every_paper_of_the_file_can_be_asked_for(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["table", *runs, "--paper", "nobody"])
    assert done.exit_code == USAGE
    assert all(f"'{name}'" in " ".join(done.output.split()) for name in published().papers)


def test_json_and_markdown_are_printed_on_request(runs: list[str]) -> None:
    found = json.loads(CliRunner().invoke(app, ["table", *runs, "--json"]).stdout)
    assert (found["format"], found["version"]) == ("megatron_empg table", 1)
    assert CliRunner().invoke(app, ["table", *runs, "--markdown"]).stdout.startswith("**alfworld")
    done = CliRunner().invoke(app, ["table", *runs, "--json", "--markdown"])
    assert done.exit_code == USAGE
    assert "give one" in done.output


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"is not a run folder: it has neither recipe\.yaml nor metrics\.jsonl"):
        table([tmp_path])
    assert TableError.exit_code == USAGE


def test_no_run_is_a_fault_of_the_command_line() -> None:
    assert CliRunner().invoke(app, ["table"]).exit_code == USAGE
