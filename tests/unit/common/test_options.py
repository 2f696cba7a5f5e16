"""Numbers on a command line are finite and in range, whichever command takes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import pytest
import typer
from pydantic import AfterValidator, BaseModel, ValidationError
from typer.models import OptionInfo
from typer.testing import CliRunner

from megatron_empg.cli import app
from megatron_empg.common.options import number, parse_command_line
from megatron_empg.common.values import faults_of

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
    "study": ["study.yaml"],
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


@dataclass(frozen=True)
class Arguments:
    """A process."""

    kind: Literal["train", "sft"]
    file: Path
    port: Annotated[int, typer.Option()]
    engine: Annotated[list[str] | None, typer.Option(help="Again for each.")] = None
    limit: Annotated[float, typer.Option(callback=number(above=0))] = 1.5
    quick: Annotated[bool, typer.Option("--quick")] = False

    def __post_init__(self) -> None:
        if self.kind == "sft" and self.engine:
            raise typer.BadParameter("sft has no engines: leave it out", param_hint="'--engine'")


def test_a_process_reads_its_command_line_as_a_dataclass() -> None:
    words = ["train", "a/b", "--port", "3", "--engine", "x", "--engine", "y", "--limit", "2", "--quick"]
    read = parse_command_line(Arguments, words)
    assert read == Arguments("train", Path("a/b"), 3, ["x", "y"], 2.0, quick=True)
    assert parse_command_line(Arguments, ["sft", "c", "--port", "4"]) == Arguments("sft", Path("c"), 4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "a"], "Error: Missing option '--port'."),
        (["test", "a", "--port", "3"], "'kind': 'test' is not one of 'train', 'sft'."),
        (["train", "a", "--port", "3", "--limit", "nan"], "'--limit': nan is not a finite number"),
        (["train", "", "--port", "3"], "'file': it is empty; name a file or folder"),
        (["sft", "a", "--port", "3", "--engine", "x"], "'--engine': sft has no engines: leave it out"),
    ],
)
def test_a_process_ends_with_the_name_of_the_word_at_fault(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(Arguments, words, program="python -m a.process")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert says in said
    assert said.startswith("Usage: python -m a.process [OPTIONS] {kind} {file}")


def paths_of(group: typer.Typer, before: str = "") -> Iterator[tuple[str, str]]:
    """(command, option) of every option that takes a path."""
    for command in group.registered_commands:
        assert command.callback is not None
        name = before + (command.name or command.callback.__name__.replace("_", "-"))
        for key, annotation in get_type_hints(command.callback, include_extras=True).items():
            plain, *marks = get_args(annotation) or (annotation,)
            if Path in (plain, *get_args(plain)) and isinstance(marks[0], OptionInfo):
                # typer takes the first name of an annotated option for its default.
                named = [
                    word for word in (marks[0].default, *(marks[0].param_decls or ())) if isinstance(word, str)
                ]
                yield name, (named or ["--" + key.replace("_", "-")])[0]
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from paths_of(below.typer_instance, f"{before}{below.name} ")


PATHS = list(paths_of(app))


def test_the_options_that_take_a_path_are_found() -> None:
    assert {("preflight", "--model"), ("plan", "--from"), ("convert to-megatron", "--like")} <= set(PATHS)


@pytest.mark.parametrize(("command", "option"), PATHS, ids=str)
def test_an_empty_path_is_refused(command: str, option: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), *NEEDED[command], option, ""], env={"COLUMNS": "200"})
    assert done.exit_code == 2, done.output
    assert option in done.output
    assert "it is empty; name a file or folder" in done.output


def test_a_validator_s_message_is_said_without_the_library_s_words() -> None:
    def odd(value: int) -> int:
        if value % 2 == 0:
            raise ValueError("is even; give an odd number")
        return value

    class Numbers(BaseModel):
        own: dict[str, Annotated[int, AfterValidator(odd)]]

    with pytest.raises(ValidationError) as caught:
        Numbers(own={"a": 2, "b": 3, "c": 4})
    assert faults_of(caught.value) == ["own.a: is even; give an odd number", "own.c: is even; give an odd number"]
