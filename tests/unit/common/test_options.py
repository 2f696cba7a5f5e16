"""Numbers on a command line are finite and in range, whichever command takes them."""

import argparse
from collections.abc import Iterator
from typing import get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.common.options import finite

NEEDED = {
    "convert to-megatron": ["a", "b"],
    "convert to-hf": ["a", "b"],
    "convert compare": ["a", "b"],
    "plan": ["recipe.yaml", "--gpus", "8"],
    "preflight": [],
    "environments": [],
    "index": ["a", "b"],
    "evaluate": ["recipe.yaml"],
    "watch": ["a"],
}


def float_options(group: typer.Typer, before: str = "") -> Iterator[tuple[str, str]]:
    """(command, option) of every option that takes a float."""
    for command in group.registered_commands:
        assert command.callback is not None
        name = before + (command.name or command.callback.__name__.replace("_", "-"))
        for key, annotation in get_type_hints(command.callback).items():
            if annotation is float or float in get_args(annotation):
                yield name, "--" + key.replace("_", "-")
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from float_options(below.typer_instance, f"{before}{below.name} ")


OPTIONS = list(float_options(app))


def test_the_options_are_found() -> None:
    found = {" ".join(option) for option in OPTIONS}
    assert {"convert to-hf --max-shard-gib", "plan --gpu-memory", "preflight --timeout"} <= found


@pytest.mark.parametrize(
    ("value", "says"), [("nan", "nan is not a finite"), ("inf", "inf is not a finite"), ("-1", "-1.0 is")]
)
@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=str)
def test_a_number_that_makes_no_sense_is_refused(command: str, option: str, value: str, says: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), *NEEDED[command], option, value], env={"COLUMNS": "200"})
    assert done.exit_code == 2, done.output
    assert option in done.output
    assert says in done.output


def test_a_tool_refuses_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=finite)
    assert parser.parse_args(["--limit", "1.5"]).limit == 1.5
    for value in ("nan", "inf", "-1", "ten"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--limit=" + value])
        assert f"argument --limit: invalid finite value: '{value}'" in capsys.readouterr().err
