"""The project's errors have one base, by which a program knows how to end."""

import ast
import builtins
import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

import megatron_empg
from megatron_empg.common.errors import EmpgError, told_plainly

PACKAGE = Path(megatron_empg.__file__).parent
SIGNALS = {
    "environments.alfworld.index.GameNotListed": "why a game is not listed; the caller counts them",
    "environments.conformance.findings.RuleBroken": "a rule's verdict; the caller makes a finding of it",
    "environments.conformance.findings.RuleDoubtful": "a rule's verdict; the caller makes a finding of it",
    "environments.conformance.findings.RuleNotTried": "a rule's verdict; the caller makes a finding of it",
    "environments.deep_search.judge._Again": "says that a request is to be tried again",
    "environments.deep_search.service_client._Passing": "says that a request is to be tried again",
    "environments.deep_search.search.top_k.DamagedPostingsError": "compiled code raises it; its caller explains",
    "environments.webshop.served_client._Passing": "says that a request is to be tried again",
    "environments.workers.wire.TooLong": "a message's size, of which the caller makes an error",
    "launch.interrupts.Interrupted": "an interrupt, which is not an Exception",
    "prepare.download.DownloadStopped": "says that another download has failed",
    "prepare.download._Again": "says that a download is to be tried again",
    "rollout.service.server.ClientGone": "says that nobody waits for the answer",
    "weights.sync.together.RankStopped": "says that some rank's part failed; the publisher raises what it was",
}
"""Classes that are raised but are no errors of which anybody reads."""


@dataclass(frozen=True)
class Raised:
    """A class of the package that is an exception, by the last of its bases that Python has."""

    name: str
    derives_from_base: bool


def test_every_error_of_the_package_derives_from_the_base() -> None:
    found = exception_classes()
    names = {raised.name for raised in found}
    assert {"recipe.errors.RecipeError", "trainer.errors.TrainingError"} <= names
    assert SIGNALS.keys() <= names, "a signal is listed that is gone"
    plain = {raised.name for raised in found if not raised.derives_from_base}
    assert plain == SIGNALS.keys()


def test_one_class_says_that_a_checkpoint_is_at_fault() -> None:
    names = [raised.name for raised in exception_classes()]
    assert [name for name in names if name.endswith(".CheckpointError")] == [
        "weights.checkpoints.errors.CheckpointError"
    ]


@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        ("recipe.errors", "RecipeError", 2),
        ("weights.checkpoints.errors", "CheckpointError", 2),
        ("weights.mapping.model_config", "ModelConfigError", 2),
        ("trainer.errors", "TrainingError", 1),
        ("run.folder", "RunFolderError", 1),
        ("prepare.errors", "PrepareError", 1),
    ],
)
def test_what_a_user_gave_ends_a_program_with_2_and_all_else_with_1(
    module: str, name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error = getattr(importlib.import_module(f"megatron_empg.{module}"), name)
    with pytest.raises(SystemExit) as ended, told_plainly():
        raise error("actor.lr is -1: give a number above 0")
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: actor.lr is -1: give a number above 0\n"


def test_an_error_of_somebody_elses_is_not_touched() -> None:
    with pytest.raises(ValueError, match="theirs") as error, told_plainly():
        raise ValueError("theirs")
    assert not isinstance(error.value, EmpgError)


def exception_classes() -> list[Raised]:
    """By the text of the package's modules, since some cannot be imported on every machine."""
    bases: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        bases.update(_classes(module, ast.parse(path.read_text(encoding="utf-8"))))
    found = []
    for name in sorted(bases):
        ancestors = _ancestors(name, bases)
        if any(_is_exception(ancestor) for ancestor in ancestors):
            found.append(Raised(name, "common.errors.EmpgError" in ancestors))
    return found


def _classes(module: str, tree: ast.Module) -> dict[str, list[str]]:
    """{dotted name: dotted names of its bases}, without the package's own name."""
    known = {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = (node.module or "").removeprefix("megatron_empg.")
            known.update({alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names})
    classes = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = [base.id for base in node.bases if isinstance(base, ast.Name)]
            classes[f"{module}.{node.name}"] = [known.get(name, name) for name in names]
    return classes


def _ancestors(name: str, bases: dict[str, list[str]]) -> set[str]:
    found = {name}
    for base in bases.get(name, ()):
        found |= _ancestors(base, bases)
    return found


def _is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)
