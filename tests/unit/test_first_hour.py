"""docs/first_hour.md quotes what the programs say: every quotation is found in the sources, in one message."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from megatron_empg.launch.exit_codes import ExitCode
from megatron_empg.launch.job_error import JobError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/first_hour.md"
ANYTHING = "…"
TABLES = "| message |"
"""Tables whose first column is quotations."""


def blocks() -> list[str]:
    """Lines of the blocks of output."""
    found = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in found for line in block.splitlines()]


def first_column() -> Iterator[str]:
    """Quotations of the tables of messages."""
    inside = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        inside = line.startswith("|") and (inside or line.startswith(TABLES))
        quoted = re.match(r"\| `(.+?)` \|", line)
        if inside and quoted:
            yield quoted.group(1)


QUOTATIONS = sorted({*blocks(), *first_column()})


class Messages(ast.NodeVisitor):
    """The strings of a module; what an f-string fills in is `…`, and strings that stand together are one."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.append(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self.found.append(text_of(node))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.found.append(text_of(node))
        self.generic_visit(node)


def text_of(node: ast.expr) -> str:
    """The text that an expression makes, as far as it stands there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return ANYTHING


@cache
def messages() -> list[str]:
    """Everything that the package and the scripts may say."""
    found: list[str] = []
    for path in sorted((ROOT / "megatron_empg").rglob("*.py")):
        visitor = Messages()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        found += visitor.found
    for path in sorted((ROOT / "slurm").glob("*.sh")):
        lines = [
            line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
        ]
        found += [re.sub(r"\$\{[^}]*\}|\$\w+|\$\([^()]*\)", ANYTHING, line) for line in lines]
    return found


def is_said(quotation: str) -> bool:
    """Whether its fixed parts stand in one message, in their order."""
    said = re.sub(r"^(error \(\w*…?\): |watchdog: (hanging: )?|note: )(?=.*\w{4})", "", quotation)
    parts = [part for part in said.split(ANYTHING) if re.search(r"\w{2}", part)]
    pattern = re.compile(".*?".join(re.escape(part) for part in parts), flags=re.DOTALL)
    return bool(parts) and any(pattern.search(message) for message in messages())


def test_there_are_quotations_of_every_kind() -> None:
    assert len(blocks()) >= 12
    assert len(list(first_column())) >= 40


@pytest.mark.parametrize("quotation", QUOTATIONS)
def test_a_quotation_stands_in_the_sources(quotation: str) -> None:
    assert is_said(quotation), quotation


@pytest.mark.parametrize(
    "invented",
    [
        "the engines have lost their minds at step …",
        "step …: the actor holds version …; the engines sampled with policy versions …",
        "two restarts brought a checkpoint after step …: giving up",
        "…",
    ],
)
def test_what_nobody_says_is_not_found(invented: str) -> None:
    assert not is_said(invented)


def test_the_prefixes_of_messages_are_the_programs_own() -> None:
    job = (ROOT / "megatron_empg/launch/job_output.py").read_text(encoding="utf-8")
    watchdog = (ROOT / "megatron_empg/cluster/watchdog.py").read_text(encoding="utf-8")
    assert 'f"error ({error.word}): {error}"' in job
    assert 'f"hanging: {line}"' in watchdog
    assert 'f"unfit: {event}"' in watchdog


def test_exit_codes_are_those_of_the_scripts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    codes = {JobError(code, "").word: int(code) for code in ExitCode}
    assert codes["configuration"] == 10
    headings = {
        "engines": f"Errors of the engines (exit code {codes['engines']})",
        "trainer": f"Errors of the trainer (exit code {codes['trainer']})",
        "restarts": f"(exit codes {codes['watchdog']} to {codes['restarts']})",
        "search": f"(exit codes {codes['configuration']} to {codes['search']})",
    }
    assert [name for name, heading in headings.items() if heading not in page] == []
    for name, words in (("node", "for GPU errors; exit code {}"), ("preflight", "a node is unfit; exit code {}")):
        assert words.format(codes[name]) in page
