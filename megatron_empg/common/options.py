"""How command lines are read, and numbers on them: the range options of typer let nan through."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

import typer

Parsed = TypeVar("Parsed")


def plain_app() -> typer.Typer:
    """For processes that a launcher starts: a fault of their words is said in plain lines, as a log wants it."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def parse_command_line(
    kind: Callable[..., Parsed], words: Sequence[str] | None = None, *, program: str | None = None
) -> Parsed:
    """A process's command line, or these words, as a dataclass whose fields are typer's arguments and options.

    Words that do not fit end the process with exit code 2 and a message that names the option; ``--help`` with 0.
    What the process then does runs outside of typer, so that interrupts and errors are its own. ``program`` is
    what people call to start it, where that is not Python.
    """
    parsed: list[Parsed] = []

    def keep(**given: Any) -> None:
        parsed.append(kind(**given))

    # typer reads the fields off the signature.
    keep.__doc__ = kind.__doc__
    keep.__annotations__ = get_type_hints(kind, include_extras=True)
    keep.__signature__ = inspect.signature(kind, eval_str=True)  # type: ignore[attr-defined]
    app = plain_app()
    app.command()(keep)
    try:
        app(args=words, prog_name=program)
    except SystemExit:
        if not parsed:
            raise
    return parsed[0]


def number(*, at_least: float = 0.0, above: float | None = None) -> Callable[[float | None], float | None]:
    """A callback for a numeric option: finite, and at least (or above) so much. An option not given passes."""

    def check(value: float | None) -> float | None:
        if value is None:
            return None
        if not math.isfinite(value):
            raise typer.BadParameter(f"{value} is not a finite number")
        if above is not None and value <= above:
            raise typer.BadParameter(f"{value} is not above {above:g}")
        if value < at_least:
            raise typer.BadParameter(f"{value} is below {at_least:g}")
        return value

    return check
