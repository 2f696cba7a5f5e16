"""Where a fault is planted: a fragment of a named definition, found by its tokens and not by its lines.

A definition's name is the marker of a place. It was chosen over a comment at the line: who reads a formula should
see it alone, one line may hold several places, and the name already says where in the method a fault lies. Other
statements, comments and the formatter leave a place where it is.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
"""Kinds of tokens that say how a text is laid out, and not what it does."""


class MisfitError(Exception):
    """A place that the code has moved away from."""


@dataclass(frozen=True)
class Place:
    """A definition, such as ``Place("megatron_empg/algorithms/grpo.py", "Grpo.advantages")``."""

    file: str
    definition: str
    """Of a function, class or constant, with those it lies in; "" is the whole file, which need not be Python."""

    @classmethod
    def read(cls, text: str) -> "Place":
        """Of ``FILE:DEFINITION`` or ``FILE``; a FILE without a suffix is a module below `megatron_empg/`."""
        file, _, definition = text.partition(":")
        if not Path(file).suffix:
            file = f"megatron_empg/{file}.py"
        return cls(file, definition)


def replaced(tree: Path, place: Place, old: str, new: str) -> str:
    """The text of the place's file with ``new`` for ``old``. Raises MisfitError unless ``old`` is there once."""
    path = tree / place.file
    if not path.exists():
        raise MisfitError(f"there is no file {place.file}")
    text = path.read_text(encoding="utf-8")
    found = spans(text, place, old) if path.suffix == ".py" else spans_of_text(text, old)
    if len(found) != 1:
        where = f"{place.definition} of {place.file}" if place.definition else place.file
        raise MisfitError(f"{where} has {len(found)} places with {old!r}, not one")
    start, end = found[0]
    return text[:start] + new + text[end:]


def spans_of_text(text: str, old: str) -> list[tuple[int, int]]:
    """Where ``old`` begins and ends in a text of another kind than Python."""
    starts = [start for start in range(len(text)) if text.startswith(old, start)]
    return [(start, start + len(old)) for start in starts]


def spans(text: str, place: Place, old: str) -> list[tuple[int, int]]:
    """Where the tokens of ``old`` begin and end within the definition. Raises MisfitError where there is none."""
    first, last = lines_of(text, place)
    inside = [token for token in tokens_of(text) if first <= token.start[0] <= last]
    wanted = [token.string for token in tokens_of(old)]
    line_starts = [0, 0]  # lines are counted from 1
    for line in text.splitlines(keepends=True):
        line_starts.append(line_starts[-1] + len(line))
    found = []
    for index in range(len(inside) - len(wanted) + 1):
        run = inside[index : index + len(wanted)]
        if [token.string for token in run] == wanted:
            (start_line, start), (end_line, end) = run[0].start, run[-1].end
            found.append((line_starts[start_line] + start, line_starts[end_line] + end))
    return found


def lines_of(text: str, place: Place) -> tuple[int, int]:
    """First and last line of the definition. Raises MisfitError where there is none, or more than one."""
    if not place.definition:
        return 1, text.count("\n") + 1
    node: ast.AST = ast.parse(text)
    for name in place.definition.split("."):
        found = [child for child in definitions_in(node) if name in names_of(child)]
        if len(found) != 1:
            raise MisfitError(f"{place.file} defines {place.definition} {len(found)} times, not once")
        node = found[0]
    assert isinstance(node, ast.stmt)
    return node.lineno, node.end_lineno or node.lineno


def definitions_in(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that define a name, without those inside another definition."""
    for child in ast.iter_child_nodes(node):
        if names_of(child):
            yield child
        else:
            yield from definitions_in(child)


def names_of(node: ast.AST) -> list[str]:
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    """What a text says, without its layout; a fragment may leave brackets open."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in LAYOUT:
                found.append(token)
    except tokenize.TokenError:
        pass
    return found
