"""How command lines are read, and what typer lets through: numbers such as nan, and empty paths."""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from megatron_empg.common.errors import without_prefix

Parsed = TypeVar("Parsed")
Port = Annotated[int, typer.Option(min=1, max=65535)]


class CheckedCommand(TyperCommand):
    """A command that refuses an empty path, which would be the folder that one stands in, and says faults without
    the words of the library that found them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parser = self.make_parser(ctx)
        given, _, _ = parser.parse_args(args=list(args))
        parameters: list[Any] = self.params  # typer's own class of them has no public name
        for parameter in filter(_is_path, parameters):
            if _holds_empty(given.get(parameter.name)):
                raise typer.BadParameter("it is empty; name a file or folder", ctx=ctx, param=parameter)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = without_prefix(error.message)
            raise


def _is_path(parameter: Any) -> bool:
    kind = parameter.type_descriptor.annotation
    return Path in (kind, *get_args(kind))


def _holds_empty(words: Any) -> bool:
    if isinstance(words, list | tuple):
        return any(map(_holds_empty, words))
    return isinstance(words, str) and not words.strip()


class CheckedApp(typer.Typer):
    """An application of `CheckedCommand`s."""

    def command(self, *words: Any, **settings: Any) -> Any:
        return super().command(*words, **{"cls": CheckedCommand, **settings})


def plain_app() -> typer.Typer:
    """For processes that a launcher starts: a fault of their words is said in plain lines, as a log wants it."""
    return CheckedApp(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


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
